//! What the follower sends the shim: one message a frame. The shim believes it in what concerns its own VPS's log.

/// Files that are followed at once.
pub const SLOTS: usize = 1024;
/// Bytes of lines in one frame.
pub const TEXT: usize = 16 << 10;
/// Bytes of a path.
const PATH: usize = 4096;
/// Bytes of a frame.
pub const FRAME: usize = TEXT + PATH + 64;

/// How far a file has been read: what is stored in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Hash of its path.
    pub path: u64,
    pub inode: u64,
    /// Bytes that were taken.
    pub offset: u64,
    /// Hash of so many of its first bytes: another file may have its inode later.
    pub head: u64,
    pub head_length: u64,
}

impl Position {
    /// Of one as it is stored.
    pub const BYTES: usize = 40;

    pub fn bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let words = [self.path, self.inode, self.offset, self.head, self.head_length];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A stored one; a slot that nobody has used says nothing.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let mut next = || words.next();
        let (path, inode, offset, head, head_length) = (next()?, next()?, next()?, next()?, next()?);
        (inode != 0).then_some(Self { path, inode, offset, head, head_length })
    }
}

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Lines of a file; where it has been read to with them.
    Lines { slot: u16, position: [u8; Position::BYTES], path: &'a [u8], text: &'a [u8] },
    /// A remark for the log.
    Said(&'a str),
    /// All has been read: the VPS ends.
    End,
}

impl<'a> Frame<'a> {
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::End => b"e".to_vec(),
            Self::Said(text) => [b"s", text.as_bytes()].concat(),
            Self::Lines { slot, position, path, text } => {
                let length = path.len() as u16;
                [b"l", &slot.to_le_bytes()[..], position, &length.to_le_bytes(), path, text].concat()
            }
        }
    }

    /// None: it is no frame.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        match bytes.split_first()? {
            (b'e', []) => Some(Self::End),
            (b's', text) => Some(Self::Said(std::str::from_utf8(text).ok()?)),
            (b'l', rest) => {
                let (slot, rest) = rest.split_first_chunk()?;
                let (position, rest) = rest.split_first_chunk()?;
                let (length, rest) = rest.split_first_chunk()?;
                let (path, text) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
                let slot = u16::from_le_bytes(*slot);
                let legal = usize::from(slot) < SLOTS && path.len() <= PATH && text.len() <= TEXT;
                legal.then_some(Self::Lines { slot, position: *position, path, text })
            }
            _ => None,
        }
    }
}

/// FNV-1a.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back_and_others_refused() {
        let position = Position { path: 1, inode: 2, offset: 3, head: 4, head_length: 5 };
        assert_eq!(Position::read(&position.bytes()), Some(position));
        assert_eq!(Position::read(&[0; Position::BYTES]), None);
        assert_eq!(Position::read(&[1; 7]), None);
        assert_eq!(Frame::read(&Frame::End.bytes()), Some(Frame::End));
        let frame = Frame::Lines { slot: 7, position: position.bytes(), path: b"/a", text: b"x\ny\n" };
        assert_eq!(Frame::read(&frame.bytes()), Some(frame));
        let far = Frame::Lines { slot: SLOTS as u16, position: position.bytes(), path: b"/a", text: b"" };
        assert_eq!(Frame::read(&far.bytes()), None);
        for junk in [&b""[..], b"x", b"l", b"l12", &[b'l'; 50], b"s\xff"] {
            assert_eq!(Frame::read(junk), None);
        }
        let mut long = Frame::Lines { slot: 0, position: position.bytes(), path: b"", text: b"" }.bytes();
        long.resize(long.len() + TEXT + 1, b'x');
        assert_eq!(Frame::read(&long), None);
    }
}
