//! What a call asks for, and everything that depends on it.

/// The kind of a call to Gemini. All that differs between kinds is in one table,
/// `CallKind::row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// A chat of the gateway's own API, at once or streamed.
    Chat,
    /// JSON that fits the caller's schema.
    StructuredOutput,
    /// A story of several scenes.
    CinematicStoryDesign,
    /// `models/{model}:generateContent`.
    GenerateContent,
    /// `models/{model}:streamGenerateContent`.
    StreamGenerateContent,
    /// `models/{model}:countTokens`.
    CountTokens,
    /// `models/{model}:embedContent` and `:batchEmbedContents`.
    EmbedContent,
    /// `models/{model}:predict…`: images and videos.
    Predict,
    /// `models/{model}:batchGenerateContent`, which creates a batch job.
    BatchGenerateContent,
    /// `models/{model}:asyncBatchEmbedContent`, which creates a batch job.
    AsyncBatchEmbedContent,
    /// `interactions`.
    Interaction,
    /// `decisions`.
    Decision,
    /// `voices`.
    Voice,
    /// A live session, over a WebSocket.
    Live,
    /// `triggers/{trigger}/executions`: a run of an agent, which goes on after the answer.
    TriggerExecution,
    /// `fileSearchStores/{store}:importFile` and `:uploadToFileSearchStore`: a file is embedded.
    IndexFile,
    /// Any other method of Gemini's, such as one that is newer than this gateway.
    OtherMethod,
    /// The same, with a name that says that it streams.
    OtherStream,
    /// OpenAI's `chat/completions`.
    OpenAiChat,
    /// OpenAI's `embeddings`.
    OpenAiEmbeddings,
    /// OpenAI's `batches`, which creates a batch job.
    OpenAiBatch,
    /// Any other call in OpenAI's form.
    OpenAiOther,
}

/// Which quotas a call is counted against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChargedTo {
    /// Those of its model.
    Model,
    /// Quotas beside the model's, which Gemini keeps for this method. None are known until Gemini
    /// names them in a refusal, so the call waits for nothing but its slots.
    Method(&'static str),
}

/// How many requests Gemini counts for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountedAs {
    /// One.
    OneRequest,
    /// One for each text in its body.
    OneRequestPerText,
}

/// Whether a call is sent again after an attempt that Gemini may have run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resend {
    /// Once more. The call is short and changes nothing at Gemini, so running it twice costs little.
    Once,
    /// Never. It may take a minute, or start a job that would then exist twice.
    Never,
}

/// A row of the table of kinds.
#[derive(Debug, Clone, Copy)]
struct Row {
    label: &'static str,
    charged_to: ChargedTo,
    counted_as: CountedAs,
    resend: Resend,
    streams: bool,
    enqueues: bool,
}

impl Row {
    /// A call that counts as one request of its model, and is resent once.
    const fn short(label: &'static str) -> Self {
        let (charged_to, counted_as) = (ChargedTo::Model, CountedAs::OneRequest);
        let (resend, streams, enqueues) = (Resend::Once, false, false);
        Self { label, charged_to, counted_as, resend, streams, enqueues }
    }

    /// The same for a call that is never resent once Gemini may have run it.
    const fn long(label: &'static str) -> Self {
        Self { resend: Resend::Never, ..Self::short(label) }
    }

    const fn streaming(self) -> Self {
        Self { streams: true, ..self }
    }

    const fn enqueuing(self) -> Self {
        Self { enqueues: true, ..self }
    }

    const fn per_text(self) -> Self {
        Self { counted_as: CountedAs::OneRequestPerText, ..self }
    }

    const fn charged_to(self, method: &'static str) -> Self {
        Self { charged_to: ChargedTo::Method(method), ..self }
    }
}

impl CallKind {
    /// The table of kinds.
    const fn row(self) -> Row {
        match self {
            Self::Chat => Row::short("chat"),
            Self::StructuredOutput => Row::short("structured_output"),
            Self::CinematicStoryDesign => Row::short("cinematic_story_design"),
            Self::GenerateContent => Row::short("generate_content"),
            Self::StreamGenerateContent => Row::short("stream_generate_content").streaming(),
            Self::CountTokens => Row::short("count_tokens").charged_to("countTokens"),
            Self::EmbedContent => Row::short("embed_content").per_text(),
            Self::Predict => Row::long("predict"),
            Self::BatchGenerateContent => {
                Row::long("create_batch").charged_to("batchGenerateContent").enqueuing()
            }
            Self::AsyncBatchEmbedContent => {
                Row::long("create_batch").charged_to("asyncBatchEmbedContent").enqueuing()
            }
            Self::Interaction => Row::long("interaction"),
            Self::Decision => Row::long("decision"),
            Self::Voice => Row::long("voice"),
            Self::Live => Row::long("live").streaming(),
            Self::TriggerExecution => Row::long("trigger_execution"),
            Self::IndexFile => Row::long("index_file"),
            Self::OtherMethod => Row::long("other_method"),
            Self::OtherStream => Row::long("other_method").streaming(),
            Self::OpenAiChat => Row::short("openai_chat"),
            Self::OpenAiEmbeddings => Row::short("openai_embeddings").per_text(),
            Self::OpenAiBatch => Row::long("create_batch").charged_to("create"),
            Self::OpenAiOther => Row::long("openai_other"),
        }
    }

    /// The value of the label `kind` in metrics and logs. Several kinds may share one.
    pub const fn label(self) -> &'static str {
        self.row().label
    }

    /// Which quotas it is counted against.
    pub const fn charged_to(self) -> ChargedTo {
        self.row().charged_to
    }

    /// How many requests Gemini counts for it.
    pub const fn counted_as(self) -> CountedAs {
        self.row().counted_as
    }

    /// Whether the answer is of use from its first event on, as the request says.
    pub const fn streams(self) -> bool {
        self.row().streams
    }

    /// Whether the reported input tokens are those of the body that was sent, so that the estimator can
    /// learn from them. Those of a session are of all its messages.
    pub(super) const fn teaches_estimates(self) -> bool {
        !matches!(self, Self::Live)
    }

    /// Whether it creates a batch job, whose tokens Gemini limits until the job ends.
    pub const fn enqueues(self) -> bool {
        self.row().enqueues
    }

    pub(super) const fn resend(self) -> Resend {
        self.row().resend
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_keep_the_labels_they_have() {
        for (kind, label) in [
            (CallKind::Chat, "chat"),
            (CallKind::StructuredOutput, "structured_output"),
            (CallKind::CinematicStoryDesign, "cinematic_story_design"),
            (CallKind::GenerateContent, "generate_content"),
            (CallKind::StreamGenerateContent, "stream_generate_content"),
            (CallKind::CountTokens, "count_tokens"),
            (CallKind::EmbedContent, "embed_content"),
            (CallKind::Predict, "predict"),
            (CallKind::BatchGenerateContent, "create_batch"),
            (CallKind::AsyncBatchEmbedContent, "create_batch"),
            (CallKind::Interaction, "interaction"),
            (CallKind::Decision, "decision"),
            (CallKind::Voice, "voice"),
            (CallKind::Live, "live"),
            (CallKind::TriggerExecution, "trigger_execution"),
            (CallKind::IndexFile, "index_file"),
            (CallKind::OtherMethod, "other_method"),
            (CallKind::OtherStream, "other_method"),
            (CallKind::OpenAiChat, "openai_chat"),
            (CallKind::OpenAiEmbeddings, "openai_embeddings"),
            (CallKind::OpenAiBatch, "create_batch"),
            (CallKind::OpenAiOther, "openai_other"),
        ] {
            assert_eq!(kind.label(), label);
        }
    }

    #[test]
    fn methods_with_quotas_of_their_own_are_not_charged_to_the_model() {
        for (kind, method) in [
            (CallKind::CountTokens, "countTokens"),
            (CallKind::BatchGenerateContent, "batchGenerateContent"),
            (CallKind::AsyncBatchEmbedContent, "asyncBatchEmbedContent"),
            (CallKind::OpenAiBatch, "create"),
        ] {
            assert_eq!(kind.charged_to(), ChargedTo::Method(method));
        }
        for kind in [CallKind::Chat, CallKind::GenerateContent, CallKind::Interaction] {
            assert_eq!(kind.charged_to(), ChargedTo::Model);
        }
    }
}
