//! Names that a pattern means.

/// An absolute path whose parts may hold `*` and `?`.
#[derive(Debug)]
pub struct Pattern(pub Vec<Vec<u8>>);

impl Pattern {
    pub fn new(text: &str) -> Self {
        Self(text.split('/').filter(|part| !part.is_empty()).map(|part| part.as_bytes().to_vec()).collect())
    }
}

/// Whether it stands for one name only.
pub fn is_plain(part: &[u8]) -> bool {
    !part.iter().any(|byte| b"*?".contains(byte))
}

/// Whether `name` is meant: `*` stands for any bytes, `?` for one. As with a shell's, no name that begins with a point is
/// meant by a part that does not.
pub fn matches(part: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && part.first() != Some(&b'.') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    // Where the last `*` was, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match part.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    part[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        let meant = |part: &str, name: &str| matches(part.as_bytes(), name.as_bytes());
        for (part, name) in
            [("*.log", "a.log"), ("*", "x"), ("a?c*", "abc"), ("*a*b*", "xxaxxbxx"), (".*", ".x"), ("a", "a")]
        {
            assert!(meant(part, name), "{part} {name}");
        }
        for (part, name) in [("*.log", "a.log.1"), ("*", ".x"), ("a?c", "ac"), ("*a*b", "ab."), ("", "a"), ("a", "")] {
            assert!(!meant(part, name), "{part} {name}");
        }
        // Not in the square of their lengths' square.
        assert!(!meant(&"*a".repeat(100), &"a".repeat(99)));
    }
}
