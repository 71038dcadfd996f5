//! The members of a stream, one after the other.

use std::io::Read;

use crate::{
    ArchiveError, BLOCK, CHUNK, PATH, Refusal,
    header::{Header, Kind, number},
    pax::{GLOBALS, Pax, RECORDS},
};

/// Extents of one file at most.
const EXTENTS: usize = 64 << 10;
/// Bytes after the end at most: tar fills its last record.
const TRAILER: u64 = 16 << 20;

/// Extended attributes: names and values.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// One member, without its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// As it is written there.
    pub path: Vec<u8>,
    /// What it links to.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The lower bits of its mode.
    pub mode: u32,
    /// User and group.
    pub owner: (u64, u64),
    /// Seconds and nanoseconds.
    pub modified: (i64, u32),
    /// Bytes of the file.
    pub size: u64,
    /// Where in the file its content goes, in order: offset and length.
    pub extents: Vec<(u64, u64)>,
    /// Extended attributes.
    pub attributes: Attributes,
}

/// A stream.
#[derive(Debug)]
pub struct Members<R> {
    input: R,
    at: u64,
    /// Bytes of the member's content that have not been read.
    left: u64,
    /// Bytes after it, up to the next block.
    padding: u64,
    globals: Pax,
}

impl<R: Read> Members<R> {
    /// Nothing has been read.
    pub fn new(input: R) -> Self {
        Self { input, at: 0, left: 0, padding: 0, globals: Pax::default() }
    }

    /// The next member; none at the end, which has been read then. What was not read of the last one is passed over.
    ///
    /// # Errors
    /// The stream is no archive, damaged or cut, or breaks.
    pub fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut pax = self.globals.clone();
        let (mut path, mut link) = (None, None);
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            self.exactly(&mut block)?;
            let header = Header(block);
            if header.is_zero() {
                return self.end().map(|()| None);
            }
            if !header.is_sound() {
                return Err(if self.at == BLOCK as u64 {
                    ArchiveError::NotTar
                } else {
                    self.damaged("a header is expected")
                });
            }
            self.content(header.size().ok_or_else(|| self.damaged("a size is no number"))?);
            match header.kind() {
                Kind::Pax => {
                    let text = self.small()?;
                    if !pax.parse(&text, RECORDS) {
                        return Err(self.damaged("its extended headers are no records, or too many"));
                    }
                }
                Kind::PaxGlobal => {
                    let text = self.small()?;
                    if !self.globals.parse(&text, GLOBALS) {
                        return Err(self.damaged("its global headers are no records, or too many"));
                    }
                    pax = self.globals.clone();
                }
                Kind::LongPath => path = Some(self.long()?),
                Kind::LongLink => link = Some(self.long()?),
                Kind::Label => {}
                kind => {
                    let sparse = pax.get("GNU.sparse.name").map(<[u8]>::to_vec);
                    let from_pax = |key| pax.get(key).map(<[u8]>::to_vec);
                    let path = sparse.or_else(|| from_pax("path")).or(path).unwrap_or_else(|| header.path());
                    let link = from_pax("linkpath").or(link).unwrap_or_else(|| header.link());
                    return self.member(path, link, kind, &header, &pax).map(Some);
                }
            }
        }
    }

    fn member(
        &mut self,
        path: Vec<u8>,
        link: Vec<u8>,
        kind: Kind,
        header: &Header,
        pax: &Pax,
    ) -> Result<Member, ArchiveError> {
        if let Kind::Other(letter) = kind {
            return Err(ArchiveError::Member { path, why: Refusal::Kind(letter) });
        }
        // Before there was a letter for them, directories had a slash at the end.
        let kind = if kind == Kind::File && path.ends_with(b"/") { Kind::Directory } else { kind };
        let (uid, gid) = header.owner();
        let file = matches!(kind, Kind::File | Kind::Sparse);
        // What is no file has no content, whatever size it says.
        self.content(match kind {
            Kind::File | Kind::Sparse => pax.number("size").or_else(|| header.size()).unwrap_or(0),
            // GNU's form for incremental backups lists the directory's names.
            Kind::Directory if header.letter() != b'5' => header.size().unwrap_or(0),
            _ => 0,
        });
        let (size, extents) = match kind {
            Kind::Sparse => self.gnu_extents(header)?,
            Kind::File if pax.get("GNU.sparse.major").is_some() || pax.get("GNU.sparse.map").is_some() => {
                self.pax_extents(pax)?
            }
            Kind::File if pax.get("GNU.sparse.size").is_some() => {
                return Err(self.damaged("it has sparse files of a form that is not known (GNU's 0.0)"));
            }
            _ if file => (self.left, vec![(0, self.left)]),
            _ => (0, Vec::new()),
        };
        if file {
            self.check(size, &extents)?;
        }
        Ok(Member {
            path,
            link,
            kind: if file { Kind::File } else { kind },
            mode: header.mode(),
            owner: (pax.number("uid").or(uid).unwrap_or(u64::MAX), pax.number("gid").or(gid).unwrap_or(u64::MAX)),
            modified: pax.modified().unwrap_or((header.modified(), 0)),
            size,
            extents,
            attributes: pax.attributes(),
        })
    }

    fn check(&self, size: u64, extents: &[(u64, u64)]) -> Result<(), ArchiveError> {
        let (mut end, mut stored) = (0u64, 0u64);
        for (offset, length) in extents {
            if *offset < end {
                return Err(self.damaged("a sparse file's parts lie over each other"));
            }
            let sums = offset.checked_add(*length).zip(stored.checked_add(*length));
            (end, stored) = sums.ok_or_else(|| self.damaged("a sparse file's part is too large"))?;
        }
        if end > size || stored != self.left || size > i64::MAX as u64 {
            return Err(self.damaged("a file's size is not that of its parts"));
        }
        Ok(())
    }

    /// GNU's own form: pairs in the header, and in blocks after it.
    fn gnu_extents(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>), ArchiveError> {
        let size = header.real_size().ok_or_else(|| self.damaged("a sparse file has no size"))?;
        let mut extents = Vec::new();
        let (pairs, mut more) = header.extents();
        let mut pairs = pairs.to_vec();
        loop {
            for pair in pairs.chunks_exact(24).take_while(|pair| pair[0] != 0) {
                let (offset, length) = (number(&pair[..12]), number(&pair[12..]));
                let pair = offset.zip(length).ok_or_else(|| self.damaged("a sparse file's part is no number"))?;
                extents.push(pair);
            }
            if extents.len() > EXTENTS {
                return Err(self.damaged("a sparse file has too many parts"));
            }
            if !more {
                break;
            }
            let mut block = [0; BLOCK];
            self.exactly(&mut block)?;
            more = block[504] != 0;
            pairs = block[..504].to_vec();
        }
        extents.retain(|(_, length)| *length > 0);
        Ok((size, extents))
    }

    /// GNU's forms by pax records: 1.0 has the parts before the content, 0.1 in a record.
    fn pax_extents(&mut self, pax: &Pax) -> Result<(u64, Vec<(u64, u64)>), ArchiveError> {
        let size = pax.number("GNU.sparse.realsize").or_else(|| pax.number("GNU.sparse.size"));
        let size = size.ok_or_else(|| self.damaged("a sparse file has no size"))?;
        let wrong = "a sparse file's parts are no numbers";
        let mut numbers = Vec::new();
        if let Some(map) = pax.get("GNU.sparse.map") {
            for part in map.split(|byte| *byte == b',').filter(|part| !part.is_empty()) {
                let part = std::str::from_utf8(part).ok().and_then(|part| part.parse().ok());
                numbers.push(part.ok_or_else(|| self.damaged(wrong))?);
            }
        } else {
            let (mut wanted, mut digits) = (1, Vec::new());
            while numbers.len() < wanted {
                let mut block = [0; BLOCK];
                if self.content_exactly(&mut block)? < BLOCK {
                    return Err(self.damaged(wrong));
                }
                for byte in block {
                    match byte {
                        _ if numbers.len() == wanted => break,
                        b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                        b'\n' => {
                            let text = String::from_utf8(std::mem::take(&mut digits)).unwrap_or_default();
                            let number: u64 = text.parse().map_err(|_| self.damaged(wrong))?;
                            if numbers.is_empty() {
                                let pairs = usize::try_from(number).ok().filter(|pairs| *pairs <= EXTENTS);
                                wanted =
                                    1 + 2 * pairs.ok_or_else(|| self.damaged("a sparse file has too many parts"))?;
                            }
                            numbers.push(number);
                        }
                        _ => return Err(self.damaged(wrong)),
                    }
                }
            }
            numbers.remove(0);
        }
        let pairs = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        Ok((size, pairs.filter(|(_, length)| *length > 0).collect()))
    }

    /// Some of the member's content; 0: that was all.
    ///
    /// # Errors
    /// The stream is cut, or breaks.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        match self.input(&mut buffer[..most])? {
            0 => Err(ArchiveError::Ends(self.at)),
            n => {
                self.left -= n as u64;
                Ok(n)
            }
        }
    }

    fn content_exactly(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read(&mut buffer[done..])? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn content(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        self.left = self.left.saturating_add(std::mem::take(&mut self.padding));
        if self.left == 0 {
            return Ok(());
        }
        let mut buffer = vec![0; CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK))];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The content of a member that is about others.
    fn small(&mut self) -> Result<Vec<u8>, ArchiveError> {
        if self.left > RECORDS {
            return Err(self.damaged("its extended headers are too large"));
        }
        let mut text = vec![0; self.left as usize];
        self.content_exactly(&mut text)?;
        Ok(text)
    }

    fn long(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.small()?;
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        if text.len() > PATH {
            return Err(self.damaged("a path is too long"));
        }
        Ok(text)
    }

    fn input(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => {
                    let n = read?;
                    self.at += n as u64;
                    return Ok(n);
                }
            }
        }
    }

    fn exactly(&mut self, block: &mut [u8; BLOCK]) -> Result<(), ArchiveError> {
        let mut done = 0;
        while done < BLOCK {
            match self.input(&mut block[done..])? {
                0 if self.at < BLOCK as u64 => return Err(ArchiveError::NotTar),
                0 => return Err(ArchiveError::Ends(self.at)),
                n => done += n,
            }
        }
        Ok(())
    }

    /// Reads what follows the end, so that who writes it is not left with a broken pipe.
    fn end(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = vec![0; 16 << 10];
        let end = self.at;
        while self.input(&mut buffer)? > 0 {
            if self.at - end > TRAILER {
                return Err(self.damaged("it goes on after its end"));
            }
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Damaged { at: self.at, what }
    }
}
