//! Adjustable clocks: libfaketime reads a process's offset from a file.

use std::path::{Path, PathBuf};

/// Where distributions install the library.
const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The library, if it is installed.
pub fn library() -> Option<&'static str> {
    LIBRARIES.into_iter().find(|path| Path::new(path).exists())
}

/// The wall clock of a process. Monotonic clocks are unaffected, as when a machine's time is set.
#[derive(Debug, Clone)]
pub struct Clock(Option<PathBuf>);

impl Clock {
    /// An adjustable clock, or the machine's.
    pub fn new(folder: &Path, name: &str, can_be_set: bool) -> Self {
        let clock = Self(can_be_set.then(|| folder.join(format!("{name}.clock"))));
        clock.set(0);
        clock
    }

    /// Sets its offset from the machine's clock in seconds. It takes up to a second to take effect.
    pub fn set(&self, offset: i64) {
        if let Some(file) = &self.0 {
            std::fs::write(file, format!("{offset:+}")).expect("a writable file");
        }
    }

    /// The environment that gives a process this clock. Redis's allocator asks for the time before
    /// the library is ready, so libc's allocator is preloaded before it.
    pub fn variables(&self, of_redis: bool) -> Vec<(&'static str, String)> {
        let Some(file) = &self.0 else { return Vec::new() };
        let library = library().expect("the library is installed");
        let preload = if of_redis { format!("{library}:libc.so.6") } else { library.to_owned() };
        vec![
            ("LD_PRELOAD", preload),
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }
}

/// Removes what the library leaves in shared memory when its process is killed.
pub fn tidy_up(process: u32) {
    for name in ["faketime_shm_", "sem.faketime_sem_"] {
        _ = std::fs::remove_file(format!("/dev/shm/{name}{process}"));
    }
}
