//! Warns of models that Google retires, before calls fail.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Model;

/// A model with a known end, and its replacement.
#[derive(Debug)]
struct Retirement {
    model: &'static str,
    /// When it ends, or since when it is deprecated.
    when: &'static str,
    replacement: &'static str,
    warned: AtomicBool,
}

const fn retires(model: &'static str, when: &'static str, replacement: &'static str) -> Retirement {
    Retirement { model, when, replacement, warned: AtomicBool::new(false) }
}

/// Source: Gemini API documentation, "Deprecations", as of 2026-11-10. Google routes some of these
/// to their replacement and bills its price; others answer 404.
static RETIREMENTS: [Retirement; 11] = [
    retires("gemini-2.5-pro", "retires on 2026-12-01", "gemini-3.8-flash"),
    retires("gemini-2.5-flash", "retires on 2026-12-01", "gemini-3.5-flash-lite"),
    retires("gemini-2.5-flash-image", "retires on 2027-03-15", "gemini-3.1-flash-lite-image"),
    retires("gemini-2.5-flash-preview-tts", "retired on 2026-11-17", "gemini-3.8-flash-tts"),
    retires("gemini-3.1-flash-lite", "retires on 2027-05-07", "gemini-3.5-flash-lite"),
    retires("gemini-3.1-flash-lite-preview", "retired on 2026-05-25", "gemini-3.1-flash-lite"),
    retires("gemini-3.5-flash", "is deprecated since 2026-10-08", "gemini-3.6-flash"),
    retires("gemini-3.7-flash", "is deprecated since 2026-10-08", "gemini-3.8-flash"),
    retires("gemini-embedding-001", "retires on 2028-05-14", "gemini-embedding-2"),
    retires("gemini-embedding-2-preview", "retired on 2026-11-06", "gemini-embedding-2"),
    retires("gemini-omni-1.1-flash", "retires on 2026-12-03", "gemini-omni-1.2-flash"),
];

/// Logs a warning if a requested model has a known end: once for each model in the life of the
/// process.
pub fn warn_of_retirement(model: &Model) {
    let known = RETIREMENTS.iter().find(|known| known.model == model.as_str());
    let Some(Retirement { model, when, replacement, warned }) = known else { return };
    // Read first: a write by every call would make the processors contend for the cache line.
    if warned.load(Ordering::Relaxed) || warned.swap(true, Ordering::Relaxed) {
        return;
    }
    tracing::warn!(model, replacement, "this model {when}; use its replacement");
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_retirement_is_logged_once_with_its_replacement() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&log);
        let logs = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Log(Arc::clone(&writer)));
        tracing::subscriber::with_default(logs.finish(), || {
            for name in ["gemini-2.5-pro", "gemini-3.8-flash", "gemini-2.5-pro"] {
                warn_of_retirement(&Model::parse(name).unwrap());
            }
        });
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("2026-12-01") && log.contains("gemini-3.8-flash"), "{log}");
    }

    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(line)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_replacement_is_itself_retired() {
        let retired: Vec<_> = RETIREMENTS
            .iter()
            .filter(|known| known.when.starts_with("retired"))
            .map(|known| known.model)
            .collect();
        for known in &RETIREMENTS {
            assert!(!retired.contains(&known.replacement), "{}", known.model);
        }
    }
}
