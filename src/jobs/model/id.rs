//! The names of jobs and of processes that run them.

use std::fmt;

use rustls::crypto::ring::default_provider;

/// The public name of a job: `job_` and 128 random bits. It cannot be guessed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(String);

/// The name of a process that runs jobs, different for each start.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReplicaId(pub String);

impl JobId {
    /// A new id.
    pub fn random() -> Self {
        Self(format!("job_{:032x}", u128::from_le_bytes(random_bytes())))
    }

    /// Reads an id; `None` if the text has not its form.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("job_")?;
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (digits.len() == 32 && digits.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The beginning of the id, for logs: whoever knows the whole id may be able to use the job.
    pub fn beginning(&self) -> &str {
        self.0.get(..12).unwrap_or_default()
    }
}

impl ReplicaId {
    /// A new name.
    pub fn random() -> Self {
        Self(format!("{:032x}", u128::from_le_bytes(random_bytes())))
    }
}

/// From a cryptographic generator, since an id may be all that protects a job.
fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    let filled = default_provider().secure_random.fill(&mut bytes);
    filled.expect("the system gives random bytes");
    bytes
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let id = JobId::random();
        assert_eq!(JobId::parse(id.as_str()), Some(id.clone()));
        assert_ne!(JobId::random(), id);
        for text in ["", "job_", "job_0", &id.as_str().to_uppercase(), &format!("{id}0")] {
            assert_eq!(JobId::parse(text), None, "{text}");
        }
    }
}
