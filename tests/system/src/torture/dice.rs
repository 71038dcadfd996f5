//! Chance that a number repeats.

/// SplitMix64: the same seed throws the same.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Of that seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Of a seed of nobody's choice.
    pub fn seed() -> u64 {
        let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64;
        Self(time ^ u64::from(std::process::id())).next() % 1_000_000_000
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// From 0 to 1.
    pub fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True `once` in so many throws.
    pub fn one_in(&mut self, once: usize) -> bool {
        self.below(once) == 0
    }

    /// One of them.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }
}
