//! The name that was probably meant.

/// The known name that is nearest to `written` (Levenshtein distance), if one is near enough to be meant.
pub fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if written.len() > 64 {
        return None;
    }
    let lower = written.to_lowercase();
    let (distance, name) = known.map(|name| (distance(&lower, name), name)).min()?;
    (distance <= name.len().div_ceil(3).min(3)).then_some(name)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let known = || ["command", "image", "env", "restart"].into_iter();
        assert_eq!(nearest("comand", known()), Some("command"));
        assert_eq!(nearest("Image", known()), Some("image"));
        assert_eq!(nearest("envs", known()), Some("env"));
        assert_eq!(nearest("iamge", known()), Some("image"));
        assert_eq!(nearest("volumes", known()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
