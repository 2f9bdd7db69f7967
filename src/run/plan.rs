//! Whether a run begins a new job or continues one, by what its last run left.

use std::fs;
use std::path::{Path, PathBuf};

use super::Retry;
use super::directory::{DirectoryError, RunDirectory, RunRecord};
use super::failure::{CANNOT_WRITE, RunFailure, USAGE};
use super::output::{beside, is_standard, remove_part};
use super::service::Action;
use super::upload::Measure;

/// What a run is going to do.
#[derive(Debug)]
pub(super) struct Plan {
    /// `None` if a service has the job and nothing but standard output is written.
    directory: Option<RunDirectory>,
    record: RunRecord,
    /// Whether an earlier run left a record, and so perhaps a part of the output.
    had_record: bool,
    /// Whether the service had the job of a run without a record.
    is_repeated: bool,
    measure: Measure,
    retry: Option<Action>,
}

impl Plan {
    /// Looks at the output and at what the last run left.
    ///
    /// # Errors
    /// [`RunFailure`] if there is a complete output, or one of another run.
    pub(super) fn new(
        output: &Path,
        measure: &Measure,
        url: Option<&str>,
        force: bool,
        retry: Option<Retry>,
    ) -> Result<Self, RunFailure> {
        let path = match (is_standard(output), url) {
            (false, _) => Some(beside(output, ".job")),
            (true, None) => Some(PathBuf::from(format!("run-{}.job", &measure.digest[..16]))),
            (true, Some(_)) => None,
        };
        let is_there = !is_standard(output) && output.exists();
        let earlier_path = path.as_ref().filter(|path| path.exists());
        if earlier_path.is_none() && is_there && !force {
            return Err(exists(output, "--force replaces it"));
        }
        let had_record = path.as_deref().is_some_and(RunDirectory::has_record);
        let part = beside(output, ".part");
        if !is_standard(output) && !had_record && fs::symlink_metadata(&part).is_ok() {
            let message = format!("{} exists, and is of no run; move it", part.display());
            return Err(RunFailure::new(CANNOT_WRITE, message));
        }
        let directory = path.map(RunDirectory::take).transpose()?;
        let earlier = match directory.as_ref().map(RunDirectory::record) {
            Some(Err(DirectoryError::Damaged(..))) if force => None,
            Some(record) => record?,
            None => None,
        };
        let retry = retry.map(|which| match which {
            Retry::Retryable => Action::Retry,
            Retry::All => Action::RetryAll,
        });
        let earlier = match earlier {
            None if is_there && !force => return Err(exists(output, "--force replaces it")),
            None => None,
            Some(earlier) if earlier.asks(measure, url) => {
                let goes_on = earlier.is_forced && !earlier.is_finished;
                if force && retry.is_none() && !goes_on {
                    None
                } else if is_there && earlier.is_finished && retry.is_none() {
                    let message = "--retry asks its failed items again, and --force asks all again";
                    return Err(exists(output, message));
                } else if is_there && !earlier.is_finished && !earlier.replaces && !force {
                    let message = "it appeared after the run was begun; move it, and the same \
                                   command continues";
                    return Err(exists(output, message));
                } else {
                    // An output that was removed is written again.
                    Some(earlier)
                }
            }
            Some(_) if force => None,
            Some(_) => {
                let directory = directory.as_ref().map(RunDirectory::path).unwrap_or(output);
                let message = format!(
                    "{} belongs to a run with another input, other options or another service; \
                     continue that one, or --force begins anew",
                    directory.display()
                );
                return Err(RunFailure::new(USAGE, message));
            }
        };
        let is_new = earlier.is_none();
        let mut record = earlier.unwrap_or_else(|| RunRecord {
            url: url.map(str::to_owned),
            digest: measure.digest.clone(),
            // Two outputs never share a job. Without a record, only what is asked tells jobs apart.
            salt: match directory.is_some() || force {
                true => format!("{:032x}", fastrand::u128(..)),
                false => String::new(),
            },
            job_id: None,
            is_finished: false,
            is_forced: force,
            replaces: is_there,
        });
        record.replaces = is_there;
        if let Some(directory) = &directory {
            if is_new {
                directory.clear()?;
            }
            directory.keep(&record)?;
        }
        Ok(Self {
            directory,
            record,
            had_record,
            is_repeated: false,
            measure: measure.clone(),
            retry,
        })
    }

    /// What is uploaded.
    pub(super) fn measure(&self) -> &Measure {
        &self.measure
    }

    /// Whether an earlier run may have left a part of the output.
    pub(super) fn had_record(&self) -> bool {
        self.had_record
    }

    /// Where the job is, without a service.
    pub(super) fn data(&self) -> Option<PathBuf> {
        self.directory.as_ref().map(RunDirectory::data)
    }

    /// The id of the job, if it was accepted.
    pub(super) fn job_id(&self) -> Option<&str> {
        self.record.job_id.as_deref()
    }

    /// How failed items are asked again, if they are.
    pub(super) fn retry(&self) -> Option<Action> {
        self.retry
    }

    /// With this key, the same command sends the same job.
    pub(super) fn idempotency_key(&self) -> String {
        format!("{}{}", self.record.digest, self.record.salt)
    }

    /// Notes that the job was accepted.
    ///
    /// # Errors
    /// [`RunFailure`] if it cannot be noted.
    pub(super) fn accepted(&mut self, job_id: &str) -> Result<(), RunFailure> {
        self.record.job_id = Some(job_id.to_owned());
        self.record.is_finished = false;
        self.keep()
    }

    /// Notes that the service had the job before it was sent.
    pub(super) fn found(&mut self) {
        self.is_repeated = self.directory.is_none();
    }

    /// Whether the answers are those of an earlier run of which nothing was known here.
    pub(super) fn is_repeated(&self) -> bool {
        self.is_repeated
    }

    /// Leaves nothing of a run whose job was not accepted.
    ///
    /// # Errors
    /// [`RunFailure`] if something cannot be removed.
    pub(super) fn abandon(self, output: &Path) -> Result<(), RunFailure> {
        remove_part(output)?;
        Ok(self.directory.map_or(Ok(()), RunDirectory::remove)?)
    }

    /// Notes that the output is complete. Nothing is kept unless items failed.
    ///
    /// # Errors
    /// [`RunFailure`] if it cannot be noted.
    pub(super) fn finish(mut self, has_failures: bool) -> Result<(), RunFailure> {
        self.record.is_finished = true;
        self.record.is_forced = false;
        if has_failures {
            return self.keep();
        }
        Ok(self.directory.map_or(Ok(()), RunDirectory::remove)?)
    }

    fn keep(&self) -> Result<(), RunFailure> {
        let kept = self.directory.as_ref().map(|directory| directory.keep(&self.record));
        Ok(kept.unwrap_or(Ok(()))?)
    }
}

impl RunRecord {
    /// Whether it is of a run that asks the same of the same service.
    fn asks(&self, measure: &Measure, url: Option<&str>) -> bool {
        self.digest == measure.digest && self.url.as_deref() == url
    }
}

fn exists(output: &Path, advice: &str) -> RunFailure {
    RunFailure::new(USAGE, format!("{} exists; {advice}", output.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    struct Folder(TempDir);

    impl Folder {
        fn output(&self) -> PathBuf {
            self.0.path().join("out.jsonl")
        }

        fn plan(&self, digest: &str, force: bool, retry: Option<Retry>) -> Result<Plan, String> {
            let digest = digest.repeat(64);
            let measure = Measure { items: 1, bytes: 1, digest };
            let plan = Plan::new(&self.output(), &measure, Some("http://x"), force, retry);
            plan.map_err(|failure| failure.to_string())
        }

        /// A run that was interrupted after its job was accepted. Returns its key.
        fn interrupted(&self, force: bool) -> String {
            let mut plan = self.plan("a", force, None).unwrap();
            plan.accepted("job_1").unwrap();
            plan.idempotency_key()
        }

        fn finished(&self, has_failures: bool, force: bool) -> String {
            let mut plan = self.plan("a", force, None).unwrap();
            plan.accepted("job_1").unwrap();
            fs::write(self.output(), "").unwrap();
            let key = plan.idempotency_key();
            plan.finish(has_failures).unwrap();
            key
        }
    }

    fn folder() -> Folder {
        Folder(TempDir::new().unwrap())
    }

    #[test]
    fn the_same_command_continues_an_interrupted_run_with_force_or_without() {
        for force in [false, true] {
            let folder = folder();
            if force {
                fs::write(folder.output(), "").unwrap();
            }
            let key = folder.interrupted(force);
            let again = folder.plan("a", force, None).unwrap();
            assert_eq!((again.job_id(), again.idempotency_key()), (Some("job_1"), key));
        }
    }

    #[test]
    fn another_run_does_not_take_over_what_was_begun() {
        let folder = folder();
        folder.interrupted(false);
        let refused = folder.plan("b", false, None).unwrap_err();
        assert!(refused.contains("belongs to a run with another input"), "{refused}");
        assert_eq!(folder.plan("b", true, None).unwrap().job_id(), None);
    }

    #[test]
    fn a_complete_output_is_replaced_only_if_that_is_asked_for() {
        let folder = folder();
        let first = folder.finished(false, false);
        let refused = folder.plan("a", false, None).unwrap_err();
        assert!(refused.ends_with("out.jsonl exists; --force replaces it"), "{refused}");
        let second = folder.finished(false, true);
        assert_ne!(first, second, "all is asked again");
        assert!(!folder.0.path().join("out.jsonl.job").exists());
    }

    #[test]
    fn failed_items_are_asked_again_only_if_that_is_asked_for() {
        let folder = folder();
        let first = folder.finished(true, false);
        let refused = folder.plan("a", false, None).unwrap_err();
        assert!(refused.contains("--retry asks its failed items again"), "{refused}");
        let again = folder.plan("a", false, Some(Retry::All)).unwrap();
        assert_eq!((again.job_id(), again.idempotency_key()), (Some("job_1"), first.clone()));
        drop(again);
        let anew = folder.plan("a", true, None).unwrap();
        assert_eq!(anew.job_id(), None);
        assert_ne!(anew.idempotency_key(), first);
    }

    #[test]
    fn an_output_that_was_removed_is_written_again_from_the_same_job() {
        let folder = folder();
        folder.finished(true, false);
        fs::remove_file(folder.output()).unwrap();
        assert_eq!(folder.plan("a", false, None).unwrap().job_id(), Some("job_1"));
    }

    #[test]
    fn force_begins_anew_unless_the_interrupted_run_was_forced() {
        let folder = folder();
        let first = folder.interrupted(false);
        let second = folder.interrupted(true);
        assert_ne!(first, second);
        assert_eq!(folder.plan("a", true, None).unwrap().idempotency_key(), second);
        folder.finished(true, true);
        fs::remove_file(folder.output()).unwrap();
        assert_eq!(folder.plan("a", true, None).unwrap().job_id(), None);
    }

    #[test]
    fn two_outputs_never_share_a_job() {
        let (one, other) = (folder(), folder());
        assert_ne!(one.interrupted(false), other.interrupted(false));
    }

    #[test]
    fn only_standard_output_of_a_service_has_the_same_key_again() {
        let measure = Measure { items: 1, bytes: 1, digest: "a".repeat(64) };
        let key = |force| {
            let plan = Plan::new(Path::new("-"), &measure, Some("http://x"), force, None);
            plan.unwrap().idempotency_key()
        };
        assert_eq!(key(false), key(false));
        assert_ne!(key(true), key(true));
    }

    #[test]
    fn an_output_that_appeared_after_an_interruption_is_not_replaced() {
        let folder = folder();
        folder.interrupted(false);
        fs::write(folder.output(), "mine").unwrap();
        let refused = folder.plan("a", false, None).unwrap_err();
        assert!(refused.contains("appeared after the run was begun"), "{refused}");
        fs::remove_file(folder.output()).unwrap();
        assert_eq!(folder.plan("a", false, None).unwrap().job_id(), Some("job_1"));
    }

    #[test]
    fn an_interrupted_retry_is_continued() {
        let folder = folder();
        folder.finished(true, false);
        let mut retry = folder.plan("a", false, Some(Retry::All)).unwrap();
        retry.accepted("job_1").unwrap();
        drop(retry);
        let again = folder.plan("a", false, Some(Retry::All)).unwrap();
        assert_eq!(again.job_id(), Some("job_1"));
    }

    #[test]
    fn a_part_of_no_run_is_not_replaced() {
        let folder = folder();
        fs::write(beside(&folder.output(), ".part"), "mine").unwrap();
        for _ in 0..2 {
            let refused = folder.plan("a", true, None).unwrap_err();
            assert!(refused.contains("out.jsonl.part exists"), "{refused}");
        }
    }

    #[test]
    fn a_damaged_record_is_replaced_only_by_force() {
        let folder = folder();
        let directory = beside(&folder.output(), ".job");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("run.json"), "{").unwrap();
        let refused = folder.plan("a", false, None).unwrap_err();
        assert!(refused.contains(&format!("remove {}", directory.display())), "{refused}");
        assert_eq!(folder.plan("a", true, None).unwrap().job_id(), None);
    }
}
