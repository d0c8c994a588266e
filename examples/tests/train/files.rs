//! What is written, and what is refused before a run.
use std::fs;
use std::sync::atomic::AtomicBool;

use batchnorm::Cpu;

use super::example::backend::HostBackend;
use super::example::{files, train};
use super::{folder, options};

/// The error of a run that does not begin.
fn refused(line: &str) -> String {
    let (options, stop, mut printed) = (options(line), AtomicBool::new(false), Vec::new());
    let ended = train(&Cpu::default(), &HostBackend, &options, &stop, &mut printed);
    assert!(printed.is_empty(), "{}", String::from_utf8_lossy(&printed));
    ended.unwrap_err().to_string()
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing_behind() {
    let folder = folder("atomic");
    let path = folder.join("checkpoint");
    fs::create_dir(&path).unwrap();
    let error = files::check_writable(&path).unwrap_err().to_string();
    assert!(error.ends_with("checkpoint: expected a file, got a folder"), "{error}");
    files::write(&path, b"something").unwrap_err();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);

    fs::remove_dir(&path).unwrap();
    files::write(&path, b"old").unwrap();
    files::write(&path, b"new").unwrap();
    files::check_writable(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_link_stays_and_what_it_leads_to_is_written() {
    use std::os::unix::fs::symlink;
    let folder = folder("links");
    let elsewhere = folder.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let file = elsewhere.join("file");
    // Relative, one over the other, the last one absolute.
    symlink("elsewhere/second", folder.join("first")).unwrap();
    symlink("../third", elsewhere.join("second")).unwrap();
    symlink(&file, folder.join("third")).unwrap();
    for text in ["dangling", "there", "again"] {
        let link = folder.join("first");
        files::check_writable(&link).unwrap();
        files::write(&link, text.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
    for link in ["first", "elsewhere/second", "third"].map(|link| folder.join(link)) {
        assert!(link.is_symlink(), "{}", link.display());
    }
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 2);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);

    fs::remove_file(&file).unwrap();
    files::write(&folder.join("third/"), b"slash").unwrap();
    assert!(folder.join("third").is_symlink() && fs::read(&file).unwrap() == b"slash");
}

#[cfg(unix)]
#[test]
fn all_but_regular_files_are_refused_by_kind_before_the_run() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::os::unix::net::UnixListener;
    let folder = folder("kinds");
    let path = |name: &str| folder.join(name).display().to_string();
    fs::create_dir(path("folder")).unwrap();
    symlink("folder", path("link")).unwrap();
    symlink("/dev/null", path("null")).unwrap();
    symlink("loop", path("loop")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    // The name of a socket is short, which a folder of a test need not be.
    let socket = std::env::temp_dir().join(format!("batchnorm-train-{}", std::process::id()));
    let listener = UnixListener::bind(&socket).unwrap();
    for (path, why) in [
        ("/dev/null".into(), "expected a file, got a character device"),
        (path("null"), "expected a file, got a character device"),
        (path("folder"), "expected a file, got a folder"),
        (path("link"), "expected a file, got a folder"),
        (path("pipe"), "expected a file, got a named pipe"),
        (socket.display().to_string(), "expected a file, got a socket"),
        (path("loop"), "cannot be written"),
    ] {
        let expected = format!("{path}: {why}");
        // First: a run that did not refuse would replace what is there.
        let error = files::check_writable(path.as_ref()).unwrap_err().to_string();
        assert_eq!(error, expected);
        let line = format!("--steps 1 --out {} --checkpoint {path}", folder.display());
        assert_eq!(refused(&line), expected);
        assert_eq!(files::write(path.as_ref(), b"any").unwrap_err().to_string(), expected);
    }
    drop(listener);
    fs::remove_file(socket).unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    assert!(folder.join("null").is_symlink() && folder.join("loop").is_symlink());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 5);
}

#[test]
fn a_folder_that_takes_no_plots_is_refused_before_the_run() {
    let folder = folder("out");
    let out = folder.display().to_string();
    fs::write(folder.join("file"), b"").unwrap();
    assert_eq!(
        refused(&format!("--out {out}/file/out")),
        format!("{out}/file/out: cannot be made")
    );
    for name in ["accuracy.svg", "accuracy.png"] {
        fs::create_dir(folder.join(name)).unwrap();
        let expected = format!("{out}/{name}: expected a file, got a folder");
        assert_eq!(refused(&format!("--steps 1 --out {out}")), expected);
    }
    // There, and closed to the superuser, too.
    if cfg!(target_os = "linux") {
        assert_eq!(refused("--steps 1 --out /proc"), "/proc/accuracy.png: cannot be written");
    }
}
