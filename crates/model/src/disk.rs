//! What is left of a file system, and what of it is reserved.

use crate::limits::show_bytes;

/// A file system's size and what is free for who is not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes.
    pub size: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Files it can have; 0: as many as fit.
    pub files: u64,
    /// How many more of them.
    pub free_files: u64,
}

impl Disk {
    /// As statvfs(3) says it: bytes of a fragment; how many there are and are free; how many files, and more of them.
    pub fn of_fragments(fragment: u64, [size, free]: [u64; 2], [files, free_files]: [u64; 2]) -> Self {
        let [size, free] = [size, free].map(|fragments| fragments.saturating_mul(fragment));
        Self { size, free, files, free_files }
    }

    /// Bytes that are free above `percent`.
    pub fn room(&self, percent: u8) -> u64 {
        self.free.saturating_sub(self.size / 100 * u64::from(percent))
    }

    /// What it lacks, in words, when less than `percent` of it is free.
    pub fn lacks(&self, percent: u8) -> Option<String> {
        let reserve = |whole: u64| whole / 100 * u64::from(percent);
        if self.free < reserve(self.size) {
            let (free, reserve) = (show_bytes(self.free), show_bytes(reserve(self.size)));
            return Some(format!("{free} of the disk are free, and {reserve} are reserved (`reserve` in host.toml)"));
        }
        if self.files > 0 && self.free_files < reserve(self.files) {
            let (free, reserve) = (self.free_files, reserve(self.files));
            return Some(format!(
                "the disk can have {free} more files, and {reserve} are reserved (`reserve` in host.toml)"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_lacking() {
        let disk = Disk { size: 1000 << 20, free: 51 << 20, files: 1000, free_files: 60 };
        assert_eq!(disk.lacks(5), None);
        assert!(Disk { free: 49 << 20, ..disk }.lacks(5).is_some_and(|told| told.starts_with("49 MiB of the disk")));
        assert!(Disk { free_files: 10, ..disk }.lacks(5).is_some_and(|told| told.contains("10 more files")));
        assert_eq!(Disk { files: 0, free_files: 0, ..disk }.lacks(5), None);
        assert_eq!(Disk { free: 0, free_files: 0, ..disk }.lacks(0), None);
    }
}
