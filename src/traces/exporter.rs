//! From the end of a span to the receiver.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::{ResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanProcessor,
};

use super::collector::CollectorClient;
use super::settings::TraceSettings;
use super::trouble::Trouble;
use crate::metrics::Metrics;

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum CannotExport {
    /// TLS or a runtime could not be set up.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The exporter rejects its settings.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// Starts to export what is traced with the provider that is returned.
pub(super) fn start(
    settings: &TraceSettings,
    metrics: Arc<Metrics>,
) -> Result<SdkTracerProvider, CannotExport> {
    let TraceSettings { collector, resource, sampler, queue, .. } = settings;
    let trouble = Arc::new(Trouble::new(metrics, queue.length));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(CollectorClient::new(collector, Arc::clone(&trouble))?)
        .with_endpoint(collector.url.to_string())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(collector.timeout)
        .build()?;
    let exporter = CountingExporter { exporter, trouble: Arc::clone(&trouble) };
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(queue.length)
        .with_max_export_batch_size(queue.batch)
        .with_scheduled_delay(queue.delay);
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
    let attributes =
        resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let resource = Resource::builder_empty()
        .with_detectors(&[Box::new(TelemetryResourceDetector) as Box<dyn ResourceDetector>])
        .with_attributes(attributes);
    Ok(SdkTracerProvider::builder()
        .with_sampler(sampler.sampler())
        .with_resource(resource.build())
        .with_span_processor(BoundedProcessor { batches, trouble })
        .build())
}

/// Passes spans on to the exporter's thread, as long as there is room. What is dropped is counted here,
/// since the library's processor counts in metrics of its own.
#[derive(Debug)]
struct BoundedProcessor {
    batches: BatchSpanProcessor,
    trouble: Arc<Trouble>,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.trouble.has_room() {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Exports spans, and counts them.
#[derive(Debug)]
struct CountingExporter {
    exporter: SpanExporter,
    trouble: Arc<Trouble>,
}

impl opentelemetry_sdk::trace::SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.trouble.begins(spans);
        let exported = self.exporter.export(batch).await;
        match &exported {
            Ok(()) => self.trouble.exported(spans),
            Err(_) => self.trouble.failed(spans),
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
