//! Files that are there whole or not at all, and what may be written.
use std::fs::{self, File, FileType};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Followed one after the other, as many as Linux does.
const LINKS: usize = 40;

/// Writes a file that is there whole or not at all: next to it, then renamed. A link stays one, and
/// what it leads to is written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let (target, beside) = places(path)?;
    let written = (|| {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        // Before the rename, so that a crash cannot leave an empty file under the name.
        file.sync_all()?;
        fs::rename(&beside, &target)?;
        sync_folder(&target)
    })();
    written.inspect_err(|_| drop(fs::remove_file(&beside))).with_context(|| cannot_write(path))
}

/// Fails where [`write`] would, before hours of training and not after.
pub fn check_writable(path: &Path) -> Result<()> {
    let (_, beside) = places(path)?;
    File::create(&beside).with_context(|| cannot_write(path))?;
    fs::remove_file(&beside).with_context(|| cannot_write(path))
}

fn cannot_write(path: &Path) -> String {
    format!("{}: cannot be written", path.display())
}

/// The file that `path` means, and a name in its folder, as a rename needs it, that is of this
/// process alone. Refuses all but regular files and names that are not taken.
fn places(path: &Path) -> Result<(PathBuf, PathBuf)> {
    match fs::metadata(path) {
        Ok(there) if there.is_file() => {}
        Ok(there) => {
            bail!("{}: expected a file, got {}", path.display(), kind(there.file_type()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {} // or where a link leads to
        Err(error) => return Err(error).with_context(|| cannot_write(path)),
    }
    let target = follow(path)?;
    let name = target.file_name();
    let name = name.with_context(|| format!("{path:?}: expected the name of a file"))?;
    let name = format!(".{}.{}", name.to_string_lossy(), std::process::id());
    let beside = target.with_file_name(name);
    Ok((target, beside))
}

/// To the end of a chain of links, where there need not be anything yet.
fn follow(path: &Path) -> Result<PathBuf> {
    // Without a slash at the end, which would ask for the link's target and not for the link.
    let plain = |path: &Path| path.components().collect::<PathBuf>();
    let (mut target, mut links) = (plain(path), 0);
    while let Ok(next) = fs::read_link(&target) {
        links += 1;
        ensure!(links <= LINKS, "{}: more than {LINKS} links", path.display());
        target.pop();
        target = plain(&target.join(next));
    }
    Ok(target)
}

#[cfg(unix)]
fn kind(of: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match of {
        of if of.is_dir() => "a folder",
        of if of.is_char_device() => "a character device",
        of if of.is_block_device() => "a block device",
        of if of.is_fifo() => "a named pipe",
        of if of.is_socket() => "a socket",
        _ => "something else",
    }
}

#[cfg(not(unix))]
fn kind(of: FileType) -> &'static str {
    if of.is_dir() { "a folder" } else { "something else" }
}

/// So that a crash does not undo a rename.
#[cfg(unix)]
fn sync_folder(of: &Path) -> io::Result<()> {
    let folder = of.parent().filter(|folder| !folder.as_os_str().is_empty());
    match File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()) {
        // Not every folder can be read, and not every file system does this.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
        synced => synced,
    }
}

/// Folders are not opened as files are.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
