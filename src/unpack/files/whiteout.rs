//! Names that say what is gone (OCI image-spec, layer.md, "Whiteouts"; aufs' prefix).

use super::super::error::{Refusal, quoted};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout<'n> {
    /// The name is gone.
    Name(&'n [u8]),
    /// Whatever the layers below have in this directory is gone.
    Opaque,
    /// aufs' own administration, which older builders have left in layers.
    Aufs,
}

/// What an entry's last component means; `None` for an ordinary name.
pub(super) fn whiteout(name: &[u8]) -> Result<Option<Whiteout<'_>>, Refusal> {
    if name == OPAQUE {
        return Ok(Some(Whiteout::Opaque));
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(None),
        Some(b"" | b"." | b"..") => Err(Refusal::Whiteout(quoted(name))),
        Some(_) if name.starts_with(AUFS) => Ok(Some(Whiteout::Aufs)),
        Some(gone) => Ok(Some(Whiteout::Name(gone))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!(whiteout(b"a.wh.b"), Ok(None));
        assert_eq!(whiteout(b".wh.a"), Ok(Some(Whiteout::Name(b"a"))));
        assert_eq!(whiteout(b".wh..wh..opq"), Ok(Some(Whiteout::Opaque)));
        assert_eq!(whiteout(b".wh..wh.plnk"), Ok(Some(Whiteout::Aufs)));
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(whiteout(bad), Err(Refusal::Whiteout(quoted(bad))));
        }
    }
}
