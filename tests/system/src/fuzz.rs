//! Input made at random, the same again for the same seed.

/// Numbers that look random (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// One of these.
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// Bytes, fewer than `end`.
    pub fn bytes(&mut self, end: usize) -> Vec<u8> {
        let length = self.below(end);
        (0..length).map(|_| self.number() as u8).collect()
    }

    /// `bytes` with a few changes: put, cut, taken twice, and `pieces` put in.
    pub fn changed(&mut self, mut bytes: Vec<u8>, pieces: &[&[u8]]) -> Vec<u8> {
        for _ in 0..self.below(5) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => {
                    let from = self.below(at + 1);
                    let again = bytes[from..at].to_vec();
                    bytes.splice(at..at, again);
                }
                2 => drop(bytes.splice(at..at, self.pick(pieces).to_vec())),
                _ if at < bytes.len() => bytes[at] = self.number() as u8,
                _ => bytes.push(self.number() as u8),
            }
        }
        bytes
    }
}

/// How many rounds, and with which seed: `PROPTEST_CASES` and `FUZZ_SEED`, for a longer run or the same again.
pub fn rounds(few: u64) -> (u64, Random) {
    let given = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = given("FUZZ_SEED").unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64));
    eprintln!("FUZZ_SEED={seed}");
    (given("PROPTEST_CASES").unwrap_or(few), Random(seed))
}
