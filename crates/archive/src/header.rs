//! One block: a header of the ustar form, with GNU's numbers (tar(5), pax(1)).

use crate::BLOCK;

/// What a member is, by its letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// `0`, NUL, `7`
    #[default]
    File,
    /// `1`
    Hard,
    /// `2`
    Symlink,
    /// `3`, `4`
    Device,
    /// `5`, and GNU's `D`
    Directory,
    /// `6`
    Fifo,
    /// GNU's `S`: a file with holes.
    Sparse,
    /// `x`: records for the next member.
    Pax,
    /// `g`: records for all that follow.
    PaxGlobal,
    /// GNU's `L`: the next member's path.
    LongPath,
    /// GNU's `K`: the next member's target.
    LongLink,
    /// GNU's `V`: a name for the whole archive.
    Label,
    /// Another letter.
    Other(u8),
}

impl Kind {
    /// The letter that is written for it.
    pub fn letter(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::Hard => b'1',
            Self::Symlink => b'2',
            Self::Device => b'3',
            Self::Directory => b'5',
            Self::Fifo => b'6',
            Self::Sparse => b'S',
            Self::Pax => b'x',
            Self::PaxGlobal => b'g',
            Self::LongPath => b'L',
            Self::LongLink => b'K',
            Self::Label => b'V',
            Self::Other(letter) => letter,
        }
    }
}

/// A header block.
#[derive(Debug, Clone)]
pub struct Header(pub [u8; BLOCK]);

const SUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;

impl Header {
    /// Whether it is one: its checksum is right.
    pub fn is_sound(&self) -> bool {
        number(&self.0[SUM]) == Some(self.sum())
    }

    /// Whether it is all zeroes, as at an archive's end.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; BLOCK]
    }

    fn sum(&self) -> u64 {
        let byte = |(n, byte): (usize, &u8)| u64::from(if SUM.contains(&n) { b' ' } else { *byte });
        self.0.iter().enumerate().map(byte).sum()
    }

    /// The letter of its kind.
    pub fn letter(&self) -> u8 {
        self.0[KIND]
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        match self.letter() {
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::Hard,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => Kind::Sparse,
            b'x' | b'X' => Kind::Pax,
            b'g' => Kind::PaxGlobal,
            b'L' => Kind::LongPath,
            b'K' => Kind::LongLink,
            b'V' => Kind::Label,
            other => Kind::Other(other),
        }
    }

    /// Its path.
    pub fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        // GNU's own form has other things where ustar has a prefix.
        let prefix = if &self.0[257..263] == b"ustar\0" { self.text(345..500) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// What it links to.
    pub fn link(&self) -> Vec<u8> {
        self.text(157..257).to_vec()
    }

    /// Its mode's lower bits.
    pub fn mode(&self) -> u32 {
        (number(&self.0[100..108]).unwrap_or(0o644) & 0o7777) as u32
    }

    /// User and group; none: it says no number.
    pub fn owner(&self) -> (Option<u64>, Option<u64>) {
        (number(&self.0[108..116]), number(&self.0[116..124]))
    }

    /// Bytes of content.
    pub fn size(&self) -> Option<u64> {
        number(&self.0[124..136])
    }

    /// When it was changed last, in seconds; what lies before 1970 is 1970.
    pub fn modified(&self) -> i64 {
        number(&self.0[136..148]).and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
    }

    /// GNU's sparse file: its real size.
    pub fn real_size(&self) -> Option<u64> {
        number(&self.0[483..495])
    }

    /// GNU's sparse file: its first extents, and whether a block with more follows.
    pub fn extents(&self) -> (&[u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }

    fn text(&self, range: std::ops::Range<usize>) -> &[u8] {
        let field = &self.0[range];
        &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
    }

    /// A header; what does not fit its field must be said by pax records before it, and is cut here.
    pub fn new(letter: u8, path: &[u8], link: &[u8], mode: u32, owner: (u32, u32), size: u64, modified: i64) -> Self {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, width: usize, bytes: &[u8]| {
            let length = bytes.len().min(width);
            block[at..at + length].copy_from_slice(&bytes[..length]);
        };
        let octal = |number: u64, digits: usize| {
            let most = 8u64.pow(digits as u32) - 1;
            format!("{:0digits$o}", number.min(most)).into_bytes()
        };
        put(0, 100, path);
        put(100, 8, &octal(u64::from(mode), 7));
        put(108, 8, &octal(u64::from(owner.0), 7));
        put(116, 8, &octal(u64::from(owner.1), 7));
        put(124, 12, &octal(size, 11));
        put(136, 12, &octal(u64::try_from(modified).unwrap_or(0), 11));
        put(KIND, 1, &[letter]);
        put(157, 100, link);
        put(257, 8, b"ustar\x0000");
        let mut header = Self(block);
        let sum = format!("{:06o}\0 ", header.sum());
        header.0[SUM].copy_from_slice(sum.as_bytes());
        header
    }
}

/// A number: octal digits, or base 256 when the first bit is set. None: neither, negative, or too large.
pub fn number(field: &[u8]) -> Option<u64> {
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => {
            let fold = |value: u64, byte: &u8| value.checked_mul(256)?.checked_add(u64::from(*byte));
            if first & 0x40 != 0 { None } else { rest.iter().try_fold(u64::from(first & 0x3f), fold) }
        }
        field => {
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            let digits = field[..end].trim_ascii();
            let fold = |value: u64, byte: &u8| match byte {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
                _ => None,
            };
            digits.iter().try_fold(0, fold)
        }
    }
}
