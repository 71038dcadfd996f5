//! What the allocator keeps of memory that is free (mallopt(3), malloc_trim(3)).

/// Blocks from this size on are the kernel's again as soon as they are free.
const LARGE: i32 = 1 << 20;

/// For a program whose threads do little: one heap for all of them, of which peaks can be given back.
///
/// Keeps the allocator from taking large blocks out of the heap once it has seen some, as it does by default: what is
/// allocated above them keeps all of it.
pub fn one_tidy_heap() {
    // SAFETY: mallopt takes two numbers and changes how later blocks are found, not those there are.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        // Small blocks are found by size (the cache of each thread); others must not pay for merging those of before.
        libc::mallopt(libc::M_MXFAST, 0);
    }
}

/// Gives free pages of the heap back to the kernel. Takes some milliseconds of a heap of many megabytes.
pub fn trim() {
    // SAFETY: malloc_trim touches only blocks that are free.
    unsafe { libc::malloc_trim(0) };
}
