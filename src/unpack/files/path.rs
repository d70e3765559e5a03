//! Paths of entries, by their text alone.

/// Cleans a path as Go's `path.Clean` does with it under `/`: no empty component, no `.`, no `..`, no slash at either
/// end. The root is the empty path; what climbs above it stays there.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in components_of(path) {
        match component {
            b".." => {
                components.pop();
            }
            component => components.push(component),
        }
    }
    components.join(&b'/')
}

/// Components, `..` among them, without empty ones and `.`.
pub(super) fn components_of(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
    path.split(|&byte| byte == b'/').filter(|component| !matches!(*component, b"" | b"."))
}

/// The directory and the last component. The path itself is the last component where there is no slash.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_climbs_above_the_root() {
        for (written, cleaned) in [
            ("", ""),
            (".", ""),
            ("./", ""),
            ("/", ""),
            ("..", ""),
            ("../../etc/passwd", "etc/passwd"),
            ("/etc//passwd/", "etc/passwd"),
            ("a/../../b/./c", "b/c"),
            ("./a/", "a"),
        ] {
            assert_eq!(clean(written.as_bytes()), cleaned.as_bytes(), "{written}");
        }
    }
}
