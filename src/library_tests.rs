use super::*;

#[test]
fn what_is_missing_is_named_with_all_its_names() {
    let error = load("thing", &names(&["no_such_thing"])).unwrap_err();
    let file = format!("{DLL_PREFIX}no_such_thing{DLL_SUFFIX}");
    let expected = format!("thing: the loader finds none of {file}, ");
    assert!(error.to_string().starts_with(&expected), "{error}");
    let Error::Library { searched, .. } = error else { panic!("{error}") };
    assert_eq!(searched.len(), 6);
}

#[test]
fn files_are_called_as_each_system_calls_them() {
    assert_eq!(
        files("cudnn", ".dll"),
        [
            "cudnn.dll",
            "cudnn64.dll",
            "cudnn64_10.dll",
            "cudnn64_11.dll",
            "cudnn64_12.dll",
            "cudnn64_9.dll"
        ]
    );
    let versions = ["", ".12", ".11", ".10", ".9", ".1"];
    assert_eq!(files("libcudnn", ".so"), versions.map(|v| format!("libcudnn.so{v}")));
}

/// No machine is expected to have one: what one has is taken, and what it has not is named.
#[cfg(all(feature = "nccl", unix))]
#[test]
fn nccl_is_looked_for_as_wheels_install_it() {
    let plain = format!("{DLL_PREFIX}nccl{DLL_SUFFIX}");
    assert_eq!(nccl_names(), [format!("{plain}.2"), plain]);
    match nccl(&["ncclNoSuchCall"]) {
        Err(Error::Library { library: "NCCL", searched, .. }) => {
            assert_eq!(searched, nccl_names());
        }
        Err(Error::LibraryUnfit { library: "NCCL", reason }) => {
            assert!(reason.contains("ncclNoSuchCall") || reason.contains("expected"), "{reason}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// What cudarc would not find, it panics at.
#[test]
fn cudarc_tries_every_name() {
    for library in ["cuda", "nvcuda", "cudnn"] {
        let theirs = cudarc::get_lib_name_candidates(library);
        let mut place = theirs.iter();
        for name in names(&[library]) {
            assert!(place.any(|their| *their == name), "{name} in {theirs:?}");
        }
    }
}
