//! The package a person may have meant.

/// The name nearest to `wrong`, at most two edits away (three for long names).
pub fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let limit = if wrong.len() > 12 { 3 } else { 2 };
    names
        .filter(|name| name.len().abs_diff(wrong.len()) <= limit)
        .map(|name| (distance(wrong.as_bytes(), name.as_bytes()), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Edits between two names: a letter more, less or other, or two neighbours exchanged (optimal string alignment).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let other = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + other);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let names = ["nginx", "nginx-light", "ngircd", "redis-server", "nix"];
        assert_eq!(nearest("ngnix", names.into_iter()).as_deref(), Some("nginx"));
        assert_eq!(nearest("ngnix-ligth", names.into_iter()).as_deref(), Some("nginx-light"));
        assert_eq!(nearest("redis-serve", names.into_iter()).as_deref(), Some("redis-server"));
        assert_eq!(nearest("postgresql", names.into_iter()), None);
        assert_eq!(distance(b"", b"abc"), 3);
        assert_eq!(distance(b"abc", b""), 3);
    }
}
