//! One file that is to change: its diff, its backup, its replacement.

use std::{
    fmt::Write as _,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use similar::TextDiff;

/// A file before and after.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) path: PathBuf,
    pub(super) before: Option<String>,
    /// `None` removes the file.
    pub(super) after: Option<String>,
    pub(super) backup: Backup,
}

/// What happens to the backup beside the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backup {
    /// Made, unless there is one: the first is the one without Flotilla.
    Make,
    /// Removed: what it held is in place again.
    Remove,
    /// Removed: the file has been changed since, and only our entries were taken out of it.
    Drop,
    /// There is none; the folder of a file that is removed goes as well, if nothing else is in it.
    WithFolder,
    /// Left as it is, or not wanted.
    Leave,
}

/// Where the backup of `path` lies.
pub(super) fn backup_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".before-flotilla");
    PathBuf::from(name)
}

impl Change {
    pub(super) fn is_needed(&self) -> bool {
        self.before != self.after
    }

    /// A unified diff.
    pub(super) fn diff(&self) -> String {
        let name = self.path.display().to_string();
        let side = |text: &Option<String>| if text.is_some() { name.clone() } else { "/dev/null".to_owned() };
        let (before, after) = (self.before.as_deref().unwrap_or(""), self.after.as_deref().unwrap_or(""));
        let diff = TextDiff::from_lines(before, after);
        let mut out = String::new();
        let unified = diff.unified_diff().header(&side(&self.before), &side(&self.after)).to_string();
        let _ = write!(out, "{unified}");
        out
    }

    pub(super) fn done(&self) -> String {
        let path = self.path.display();
        match (&self.after, self.backup) {
            (None, _) => format!("{path}: removed"),
            (Some(_), Backup::Make) if self.before.is_some() => {
                format!("{path}: written; what was there is in {}", backup_of(&self.path).display())
            }
            (Some(_), Backup::Remove) => format!("{path}: as it was before"),
            (Some(_), Backup::Make | Backup::Drop | Backup::Leave | Backup::WithFolder) => {
                format!("{path}: written")
            }
        }
    }

    pub(super) fn apply(&self) -> anyhow::Result<()> {
        let backup = backup_of(&self.path);
        if let (Backup::Make, Some(before)) = (self.backup, &self.before)
            && !backup.exists()
        {
            self.replace(&backup, before)?;
        }
        match &self.after {
            Some(after) => self.replace(&self.path, after)?,
            None => remove(&self.path)?,
        }
        if matches!(self.backup, Backup::Remove | Backup::Drop) {
            remove(&backup)?;
        }
        if let (Backup::WithFolder, None, Some(folder)) = (self.backup, &self.after, self.path.parent()) {
            // It stays where somebody has put something else into it.
            let _in_use = std::fs::remove_dir(folder);
        }
        Ok(())
    }

    /// Writes `text` to `path` by rename, with the owner and mode that the changed file has. A link stays one, and what
    /// it leads to is written.
    fn replace(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        let resolved = std::fs::canonicalize(path);
        let path = resolved.as_deref().unwrap_or(path);
        let what = || format!("cannot write {}", path.display());
        let folder = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder).with_context(what)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(what)?;
        file.write_all(text.as_bytes()).with_context(what)?;
        let (mode, owner) = match std::fs::metadata(&self.path) {
            Ok(metadata) => (metadata.mode() & 0o7777, Some((metadata.uid(), metadata.gid()))),
            Err(_) => (0o644, None),
        };
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(file.as_file(), Some(uid), Some(gid)).with_context(what)?;
        }
        let permissions = std::fs::Permissions::from_mode(mode);
        file.as_file().set_permissions(permissions).with_context(what)?;
        file.as_file().sync_all().with_context(what)?;
        file.persist(path).with_context(what)?;
        Ok(())
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("kept.toml"), dir.path().join("config.toml"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let (before, after) = (Some("old".to_owned()), Some("new".to_owned()));
        Change { path: link.clone(), before, after, backup: Backup::Make }.apply().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(std::fs::read_to_string(backup_of(&link)).unwrap(), "old");
    }
}
