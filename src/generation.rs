//! What is asked of Gemini and how its answer is read: chats, structured output and stories, one
//! at a time or [many](batch).

pub mod batch;
pub mod chat;
pub mod cinematic;
mod found;
pub mod offload;
mod question;
mod request;
mod schemas;
mod story;
pub mod structured;

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::dispatch::{Call, CallError, CallKind, Dispatcher};
use crate::gemini::{Answer, Error, InputFeatures, Model, Usage};
use crate::limits::Admission;

use crate::schema::Work;
use offload::{Offload, Unfinished};

pub use request::{
    Credentials, Defaults, InvalidField, Object, Preparation, Request, Segment, Terms,
};
pub use schemas::Schemas;

/// One thing to generate, checked and ready to be sent.
pub trait Generation: Send + Sync + Sized + 'static {
    /// The kind of its calls.
    const KIND: CallKind;
    /// The body in which a caller asks for it.
    type Request: Request;
    /// The body that a caller gets.
    type Output: Serialize + Send + Sync + 'static;

    /// Checks all of a request. Nothing is sent.
    ///
    /// # Errors
    /// Every field that cannot be used.
    fn prepare(
        request: Self::Request,
        preparation: &Preparation<'_>,
    ) -> Result<Self, Vec<InvalidField>>;

    /// The model it is asked of.
    fn model(&self) -> &Model;

    /// What Gemini is sent.
    fn ask(&self) -> Bytes;

    /// The text in what Gemini is sent.
    fn input(&self) -> InputFeatures;

    /// Reads an answer, with the work that this may take.
    ///
    /// # Errors
    /// [`Unusable`] where the answer is not what was asked for, or the work is not enough to know.
    fn read(&self, answer: Answer, work: &Work) -> Result<Self::Output, Unusable<Self::Output>>;

    /// What Gemini is sent when its answer was a misfit.
    fn ask_again(&self, misfit: &Misfit<Self::Output>) -> Bytes;

    /// Adds to an output the tokens that an answer before it had cost.
    fn charge(output: &mut Self::Output, usage: Usage);
}

/// An answer that is not what was asked for.
#[derive(Debug)]
pub enum Unusable<Output> {
    /// It does not fit; the model may do better when it is told why.
    Misfit(Misfit<Output>),
    /// It would come out the same a second time.
    Hopeless(Error),
    /// The work was stopped before it was known whether it fits.
    Unfinished(Answer),
}

/// An answer that does not fit what was asked for.
#[derive(Debug)]
pub struct Misfit<Output> {
    /// What Gemini said.
    pub text: String,
    /// What of it does not fit; never empty.
    pub violations: Vec<String>,
    /// What it cost.
    pub usage: Usage,
    /// The output to make do with if no better one comes.
    pub fallback: Option<Output>,
}

/// Why nothing was generated.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The call gave no answer.
    #[error(transparent)]
    Dispatch(#[from] CallError),
    /// Gemini answered twice, and neither answer fits the schema.
    #[error("the answer does not fit the schema: {}", violations.join("; "))]
    SchemaViolation {
        /// What of the second answer does not fit.
        violations: Vec<String>,
        /// What the second answer cost.
        usage: Usage,
    },
    /// Something broke in this service.
    #[error("internal error")]
    Internal,
}

impl Failure {
    /// What lies behind it, for the log only.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Dispatch(failure) => failure.cause(),
            Self::SchemaViolation { .. } | Self::Internal => None,
        }
    }

    /// The tokens that were spent although nothing came of them.
    fn usage(&self) -> Usage {
        match self {
            Self::Dispatch(CallError::Upstream { error, .. }) => error.usage,
            Self::SchemaViolation { usage, .. } => *usage,
            Self::Dispatch(_) | Self::Internal => Usage::default(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Dispatch(error.into())
    }
}

/// Waits for admission and generates one thing. An answer that does not fit is asked for once more,
/// and the second call is admitted like any other.
///
/// # Errors
/// [`Failure`]; an output is always what was asked for.
pub async fn generate<G: Generation>(
    dispatcher: &Dispatcher,
    offload: &Offload,
    call: &Call,
    generation: G,
) -> Result<G::Output, Failure> {
    let admission = dispatcher.admit(call).await?;
    // Boxed so that a request that waits takes no more memory than its wait.
    let generation = Arc::new(generation);
    Box::pin(generate_admitted(dispatcher, offload, call, &generation, admission)).await
}

/// The same where the first call has been admitted.
async fn generate_admitted<G: Generation>(
    dispatcher: &Dispatcher,
    offload: &Offload,
    call: &Call,
    generation: &Arc<G>,
    admission: Admission,
) -> Result<G::Output, Failure> {
    let answer = dispatcher.generate_admitted(call, generation.ask(), admission).await?;
    let misfit = match read(offload, call, generation, answer).await? {
        Ok(output) => return Ok(output),
        Err(misfit) => misfit,
    };
    tracing::debug!(violations = misfit.violations.len(), "the answer does not fit; asking again");
    match repair(dispatcher, offload, call, generation, &misfit).await {
        Ok(mut output) => {
            G::charge(&mut output, misfit.usage);
            Ok(output)
        }
        Err(failure) => match misfit.fallback {
            Some(mut output) => {
                G::charge(&mut output, failure.usage());
                Ok(output)
            }
            None => Err(failure),
        },
    }
}

/// Reads an answer here where that takes little work, and else off the serving threads.
async fn read<G: Generation>(
    offload: &Offload,
    call: &Call,
    generation: &Arc<G>,
    answer: Answer,
) -> Result<Result<G::Output, Misfit<G::Output>>, Failure> {
    let usage = answer.usage;
    let read = match generation.read(answer, &Work::brief()) {
        Err(Unusable::Unfinished(answer)) => {
            let generation = Arc::clone(generation);
            let job = move |work: &Work| generation.read(answer, work);
            offload.run(call.payer(), call.deadline(), job).await
        }
        read => Ok(read),
    };
    match read {
        Ok(Ok(output)) => Ok(Ok(output)),
        Ok(Err(Unusable::Misfit(misfit))) => Ok(Err(misfit)),
        Ok(Err(Unusable::Hopeless(error))) => Err(error.into()),
        Ok(Err(Unusable::Unfinished(_))) | Err(Unfinished::Deadline) => {
            Err(CallError::DeadlineExceeded.into())
        }
        Err(Unfinished::TooLong(limit)) => {
            let violation = format!("to check it takes longer than {limit:?}");
            Err(Failure::SchemaViolation { violations: vec![violation], usage })
        }
        Err(Unfinished::Panicked) => Err(Failure::Internal),
    }
}

async fn repair<G: Generation>(
    dispatcher: &Dispatcher,
    offload: &Offload,
    call: &Call,
    generation: &Arc<G>,
    misfit: &Misfit<G::Output>,
) -> Result<G::Output, Failure> {
    let said = misfit.violations.iter().map(|violation| InputFeatures::of(violation));
    let input = call.input() + InputFeatures::of(&misfit.text) + said.sum();
    let call = call.followed_by(input);
    let answer = dispatcher.generate(&call, generation.ask_again(misfit)).await?;
    read(offload, &call, generation, answer).await?.or_else(|misfit| {
        let Misfit { fallback, violations, usage, .. } = misfit;
        fallback.ok_or(Failure::SchemaViolation { violations, usage })
    })
}
