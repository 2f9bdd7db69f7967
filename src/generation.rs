//! Chats, structured output and stories: what is sent to Gemini and how its answer is read. One at
//! a time, or as a [batch]. Batches and jobs run through the same [bulk] runner.
//!
//! Requests arrive here as plain values. `api` reads them from JSON and writes the results.

pub mod batch;
pub mod bulk;
pub mod chat;
pub mod cinematic;
mod extract;
pub mod offload;
mod prompt;
mod schemas;
mod story;
pub mod structured;
mod validation;

use std::sync::Arc;

use bytes::Bytes;

use crate::dispatch::{Admitted, Call, CallError, CallKind, Dispatcher, LongAnswer};
use crate::gemini::{Answer, Error, InputFeatures, Model, Usage};
use crate::schema::Work;
use offload::{Offload, OffloadError};

pub use prompt::{SchemaGeneration, SchemaKind, SchemaPrompt};
pub use schemas::{SchemaCache, Schemas};
pub use validation::{Defaults, InvalidField, ModelOptions, Segment};

/// A kind of generation: one request of it, checked and ready to be sent.
pub trait Generation: Send + Sync + Sized + 'static {
    /// The kind of its calls.
    const KIND: CallKind;
    /// What the model generates.
    type Value: Send + Sync + 'static;

    /// The model that generates.
    fn model(&self) -> &Model;

    /// The body of the call to Gemini.
    fn body(&self) -> Bytes;

    /// The features of the input from which its tokens are estimated.
    fn input(&self) -> InputFeatures;

    /// Reads an answer. `work` bounds the processor time that this may take.
    ///
    /// # Errors
    /// [`ReadError`] if the answer cannot be used, or if `work` ran out first.
    fn read(&self, answer: Answer, work: &Work) -> Result<Generated<Self::Value>, ReadError<Self>>;

    /// The body of the second call, which asks the model to correct its first answer.
    fn correction(&self, mismatch: &Mismatch<Self::Value>) -> Bytes;
}

/// What Gemini generated.
#[derive(Debug)]
pub struct Generated<T> {
    /// What the model generated.
    pub value: T,
    /// The model that was asked.
    pub model: Model,
    /// The model that answered, if Gemini says so.
    pub model_version: Option<Model>,
    /// Gemini's `finishReason`: `STOP`, `MAX_TOKENS`, …
    pub finish_reason: String,
    /// The tokens that were spent, over all calls.
    pub usage: Usage,
}

impl<T> Generated<T> {
    /// Whether Gemini stopped before the model was done, so that the value may be incomplete.
    pub fn is_truncated(&self) -> bool {
        self.finish_reason != "STOP"
    }
}

/// Why an answer was not read.
#[derive(Debug)]
pub enum ReadError<G: Generation> {
    /// The answer does not match the request. The model may correct it.
    Mismatch(Box<Mismatch<G::Value>>),
    /// The answer cannot be used, and a second one would be no better.
    Permanent(Error),
    /// The work ran out before it was known whether the answer matches.
    OutOfWork(Box<Answer>),
}

/// An answer that does not match the request.
#[derive(Debug)]
pub struct Mismatch<T> {
    /// The text of the answer.
    pub text: String,
    /// Every mismatch; never empty.
    pub violations: Vec<String>,
    /// The tokens that the answer cost.
    pub usage: Usage,
    /// What to return if the correction is no better.
    pub fallback: Option<Generated<T>>,
}

/// Why nothing was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The call to Gemini failed or was not admitted.
    #[error(transparent)]
    Dispatch(#[from] CallError),
    /// Gemini answered twice, and neither answer matches the schema; or an answer could not be
    /// checked in bounded time.
    #[error("the answer does not match the schema: {}", violations.join("; "))]
    SchemaViolation {
        /// The mismatches of the last answer.
        violations: Vec<String>,
        /// The tokens that the answers cost.
        usage: Usage,
    },
    /// An internal error of this service.
    #[error("internal error")]
    Internal,
}

impl GenerationError {
    /// The underlying cause, for the log only.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Dispatch(error) => error.cause(),
            Self::SchemaViolation { .. } | Self::Internal => None,
        }
    }

    /// The tokens that were spent all the same, as far as Gemini reports them.
    pub fn usage(&self) -> Usage {
        match self {
            Self::Dispatch(CallError::Upstream { error, .. }) => *error.usage,
            Self::SchemaViolation { usage, .. } => *usage,
            Self::Dispatch(_) | Self::Internal => Usage::default(),
        }
    }
}

impl GenerationError {
    /// The same error, after an answer that has cost this.
    fn after(mut self, spent: Usage) -> Self {
        match &mut self {
            Self::Dispatch(CallError::Upstream { error, .. }) => {
                *error.usage = spent + *error.usage;
            }
            Self::SchemaViolation { usage, .. } => *usage = spent + *usage,
            Self::Dispatch(_) | Self::Internal => {}
        }
        self
    }
}

impl From<Error> for GenerationError {
    fn from(error: Error) -> Self {
        Self::Dispatch(error.into())
    }
}

/// Waits for admission and generates. If the answer does not match the request, the model is asked
/// once to correct it; that second call passes admission like any other.
///
/// # Errors
/// [`GenerationError`]; a value that is returned always matches the request.
pub async fn generate<G: Generation>(
    dispatcher: &Dispatcher,
    offload: &Offload,
    call: &Call,
    generation: G,
) -> Result<Generated<G::Value>, GenerationError> {
    let admitted = dispatcher.admit(call).await?;
    // Boxed, so that a request that waits takes no more memory than its wait.
    let generation = Arc::new(generation);
    Box::pin(generate_admitted(dispatcher, offload, call, &generation, admitted)).await
}

/// The same for a call that has been admitted.
///
/// # Errors
/// As for [`generate`].
pub async fn generate_admitted<G: Generation>(
    dispatcher: &Dispatcher,
    offload: &Offload,
    call: &Call,
    generation: &Arc<G>,
    admitted: Admitted,
) -> Result<Generated<G::Value>, GenerationError> {
    let answer = dispatcher.generate_admitted(call, generation.body(), admitted).await?;
    let generated = read_or_correct(dispatcher, offload, call, generation, answer).await;
    if let Err(GenerationError::SchemaViolation { .. }) = &generated {
        dispatcher.note_failure(call, "schema_violation", false);
    }
    generated
}

/// Reads an answer. If it does not match the request, the model is asked once to correct it.
async fn read_or_correct<G: Generation>(
    dispatcher: &Dispatcher,
    offload: &Offload,
    call: &Call,
    generation: &Arc<G>,
    answer: LongAnswer,
) -> Result<Generated<G::Value>, GenerationError> {
    let mismatch = match read(offload, call, generation, answer).await? {
        Ok(generated) => return Ok(generated),
        Err(mismatch) => mismatch,
    };
    tracing::debug!(
        violations = mismatch.violations.len(),
        "the answer does not match the request; asking for a correction"
    );
    match correct(dispatcher, offload, call, generation, &mismatch).await {
        Ok(mut generated) => {
            generated.usage = mismatch.usage + generated.usage;
            Ok(generated)
        }
        Err(error) => {
            let Some(mut fallback) = mismatch.fallback else {
                return Err(error.after(mismatch.usage));
            };
            fallback.usage += error.usage();
            Ok(fallback)
        }
    }
}

/// Reads an answer: on this thread if that takes little work, otherwise on the offload threads.
async fn read<G: Generation>(
    offload: &Offload,
    call: &Call,
    generation: &Arc<G>,
    LongAnswer { answer, interrupted }: LongAnswer,
) -> Result<Result<Generated<G::Value>, Box<Mismatch<G::Value>>>, GenerationError> {
    let usage = answer.usage;
    let read = match generation.read(answer, &Work::brief()) {
        Err(ReadError::OutOfWork(answer)) => {
            let generation = Arc::clone(generation);
            let job = move |work: &Work| generation.read(*answer, work);
            offload.run(call.payer(), call.deadline(), job).await
        }
        read => Ok(read),
    };
    match read {
        Ok(Ok(generated)) => Ok(Ok(generated)),
        Ok(Err(ReadError::Mismatch(mismatch))) => Ok(Err(mismatch)),
        // An answer that is not whole is of no use: what failed is the call that should have continued it.
        Ok(Err(ReadError::Permanent(error))) => Err(interrupted.map_or(error.into(), Into::into)),
        Ok(Err(ReadError::OutOfWork(_))) | Err(OffloadError::DeadlineExceeded) => {
            Err(CallError::DeadlineExceeded.into())
        }
        Err(OffloadError::TimeLimit(limit)) => {
            let violation = format!("checking the answer takes longer than {limit:?}");
            Err(GenerationError::SchemaViolation { violations: vec![violation], usage })
        }
        Err(OffloadError::Panicked) => Err(GenerationError::Internal),
    }
}

/// Asks the model to correct its answer, and reads the second one.
async fn correct<G: Generation>(
    dispatcher: &Dispatcher,
    offload: &Offload,
    call: &Call,
    generation: &Arc<G>,
    mismatch: &Mismatch<G::Value>,
) -> Result<Generated<G::Value>, GenerationError> {
    let violations = mismatch.violations.iter().map(|violation| InputFeatures::of(violation));
    let input = call.input() + InputFeatures::of(&mismatch.text) + violations.sum();
    let call = call.followed_by(input);
    let answer = dispatcher.generate(&call, generation.correction(mismatch)).await?;
    read(offload, &call, generation, answer).await?.or_else(|mismatch| {
        let Mismatch { fallback, violations, usage, .. } = *mismatch;
        fallback.ok_or(GenerationError::SchemaViolation { violations, usage })
    })
}
