//! The variables of OpenTelemetry. Many programs share them, so they are not among the settings. They
//! are read only if they name a receiver.
//!
//! Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter".

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::{InvalidSetting, Lookup, network, setting};
use crate::connect::Authorities;
use crate::traces::{Collector, SpanQueue, TraceSampler, TraceSettings};

/// A variable that may have a form for traces alone, which takes precedence.
#[derive(Debug, Clone, Copy)]
struct Variable {
    of_traces: &'static str,
    general: &'static str,
}

const ENDPOINT: Variable = Variable {
    of_traces: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    general: "OTEL_EXPORTER_OTLP_ENDPOINT",
};
const PROTOCOL: Variable = Variable {
    of_traces: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    general: "OTEL_EXPORTER_OTLP_PROTOCOL",
};
const HEADERS: Variable = Variable {
    of_traces: "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    general: "OTEL_EXPORTER_OTLP_HEADERS",
};
const TIMEOUT: Variable = Variable {
    of_traces: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    general: "OTEL_EXPORTER_OTLP_TIMEOUT",
};
const COMPRESSION: Variable = Variable {
    of_traces: "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    general: "OTEL_EXPORTER_OTLP_COMPRESSION",
};
const CERTIFICATE: Variable = Variable {
    of_traces: "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    general: "OTEL_EXPORTER_OTLP_CERTIFICATE",
};
const SDK_DISABLED: &str = "OTEL_SDK_DISABLED";
const TRACES_EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
const PROPAGATORS: &str = "OTEL_PROPAGATORS";
const SCHEDULE_DELAY: &str = "OTEL_BSP_SCHEDULE_DELAY";
const EXPORT_TIMEOUT: &str = "OTEL_BSP_EXPORT_TIMEOUT";
const QUEUE_SIZE: &str = "OTEL_BSP_MAX_QUEUE_SIZE";
const BATCH_SIZE: &str = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE";
const CAPTURE: &str = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT";

/// All variables of OpenTelemetry that are read.
pub const OTEL_VARIABLES: &[&str] = &[
    ENDPOINT.general,
    ENDPOINT.of_traces,
    PROTOCOL.general,
    PROTOCOL.of_traces,
    HEADERS.general,
    HEADERS.of_traces,
    TIMEOUT.general,
    TIMEOUT.of_traces,
    COMPRESSION.general,
    COMPRESSION.of_traces,
    CERTIFICATE.general,
    CERTIFICATE.of_traces,
    SDK_DISABLED,
    TRACES_EXPORTER,
    SERVICE_NAME,
    RESOURCE_ATTRIBUTES,
    SAMPLER,
    SAMPLER_ARG,
    PROPAGATORS,
    SCHEDULE_DELAY,
    EXPORT_TIMEOUT,
    QUEUE_SIZE,
    BATCH_SIZE,
    CAPTURE,
];

/// The path to which traces are posted below a general endpoint.
const TRACES_PATH: &str = "v1/traces";

/// The most attributes of the service, and the most headers.
const MAX_PAIRS: usize = 128;

/// The most spans that may wait. They take some kilobytes each.
const MAX_QUEUE: u64 = 1_000_000;

/// The longest time, in milliseconds: an hour.
const MAX_MILLIS: u64 = 60 * 60 * 1000;

/// Reads how traces are made; `None` if they are off.
pub(super) fn read(settings: &Lookup<'_>) -> Result<Option<TraceSettings>, InvalidSetting> {
    let variables = Variables(settings);
    let Some((variable, endpoint)) = variables.either(ENDPOINT) else { return Ok(None) };
    if variables.flag(SDK_DISABLED)? || !variables.exports()? {
        return Ok(None);
    }
    let url = url(variable, &endpoint)?;
    let export_timeout = variables.millis(EXPORT_TIMEOUT)?.unwrap_or(Duration::from_secs(30));
    let collector = Collector {
        headers: variables.headers()?,
        timeout: variables.timeout()?.min(export_timeout),
        compresses: variables.compression()?,
        authorities: variables.authorities()?,
        proxy: network::proxy(settings, &url.to_string())?,
        url,
    };
    variables.check_protocol()?;
    Ok(Some(TraceSettings {
        collector,
        resource: variables.resource()?,
        sampler: variables.sampler()?,
        propagates: variables.propagates(),
        captures_content: variables.captures_content()?,
        queue: variables.queue()?,
    }))
}

/// The URL of a receiver. Only a general endpoint is a base URL.
fn url(variable: &'static str, endpoint: &str) -> Result<Uri, InvalidSetting> {
    const EXPECTED: &str =
        "an http or https URL without a user name, such as http://collector:4318";
    let whole = match variable == ENDPOINT.general {
        true => format!("{}/{TRACES_PATH}", endpoint.trim_end_matches('/')),
        false => endpoint.to_owned(),
    };
    let usable = |url: &Uri| {
        let is_http = matches!(url.scheme_str(), Some("http" | "https"));
        let authority = url.authority().map(|authority| authority.as_str());
        is_http && authority.is_some_and(|authority| !authority.contains('@'))
    };
    let parsed = whole.parse().ok().filter(usable);
    parsed.filter(|_| !endpoint.contains(['?', '#'])).ok_or_else(|| expected(variable, EXPECTED))
}

fn expected(variable: &'static str, expected: &'static str) -> InvalidSetting {
    InvalidSetting { variable, expected: expected.into() }
}

/// Looks the variables up.
struct Variables<'a>(&'a Lookup<'a>);

impl Variables<'_> {
    fn value(&self, variable: &'static str) -> Option<String> {
        self.0.optional(setting(variable, "", "", ""))
    }

    /// The value of the more special variable that is set, and that variable.
    fn either(&self, variable: Variable) -> Option<(&'static str, String)> {
        let Variable { of_traces, general } = variable;
        [of_traces, general].into_iter().find_map(|name| Some((name, self.value(name)?)))
    }

    fn flag(&self, variable: &'static str) -> Result<bool, InvalidSetting> {
        match self.value(variable).map(|value| value.to_ascii_lowercase()).as_deref() {
            Some("true") => Ok(true),
            None | Some("false") => Ok(false),
            _ => Err(expected(variable, "true or false")),
        }
    }

    /// Whether traces are exported at all.
    fn exports(&self) -> Result<bool, InvalidSetting> {
        match self.value(TRACES_EXPORTER).as_deref() {
            None | Some("otlp") => Ok(true),
            Some("none") => Ok(false),
            _ => Err(expected(TRACES_EXPORTER, "otlp or none")),
        }
    }

    fn check_protocol(&self) -> Result<(), InvalidSetting> {
        match self.either(PROTOCOL) {
            Some((variable, protocol)) if protocol != "http/protobuf" => {
                let message =
                    "http/protobuf, the only protocol that is supported, mostly on port 4318";
                Err(expected(variable, message))
            }
            _ => Ok(()),
        }
    }

    /// Names and values, in the form of W3C Baggage: `name=value,name=value`, with percent-encoding.
    fn pairs(&self, text: &str) -> Option<Vec<(String, String)>> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let pairs = entries.map(|entry| {
            let (name, value) = entry.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((name.trim().to_owned(), value.into_owned())).filter(|(name, _)| !name.is_empty())
        });
        let pairs: Vec<_> = pairs.collect::<Option<_>>()?;
        (pairs.len() <= MAX_PAIRS).then_some(pairs)
    }

    fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, InvalidSetting> {
        let Some((variable, text)) = self.either(HEADERS) else { return Ok(Vec::new()) };
        let header = |(name, value): (String, String)| {
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name).ok()?, value))
        };
        let headers = self.pairs(&text);
        let headers = headers.and_then(|pairs| pairs.into_iter().map(header).collect());
        headers.ok_or_else(|| expected(variable, "headers, as name=value,name=value"))
    }

    /// A number of milliseconds.
    fn millis(&self, variable: &'static str) -> Result<Option<Duration>, InvalidSetting> {
        const EXPECTED: &str = "a whole number of milliseconds, 1 to 3600000";
        let Some(value) = self.value(variable) else { return Ok(None) };
        let millis = value.parse().ok().filter(|millis| (1..=MAX_MILLIS).contains(millis));
        millis.map(Duration::from_millis).ok_or_else(|| expected(variable, EXPECTED)).map(Some)
    }

    fn timeout(&self) -> Result<Duration, InvalidSetting> {
        let of_traces = self.millis(TIMEOUT.of_traces)?;
        let general = self.millis(TIMEOUT.general)?;
        Ok(of_traces.or(general).unwrap_or(Duration::from_secs(10)))
    }

    fn compression(&self) -> Result<bool, InvalidSetting> {
        match self.either(COMPRESSION) {
            Some((_, value)) if value == "gzip" => Ok(true),
            Some((variable, value)) if value != "none" => Err(expected(variable, "gzip or none")),
            _ => Ok(false),
        }
    }

    fn authorities(&self) -> Result<Authorities, InvalidSetting> {
        let Some((variable, path)) = self.either(CERTIFICATE) else {
            return Ok(Authorities::default());
        };
        let read = Authorities::read(path.as_ref());
        read.map_err(|expected| InvalidSetting { variable, expected: expected.into() })
    }

    /// The attributes of this service. The first value of a name counts.
    fn resource(&self) -> Result<Vec<(String, String)>, InvalidSetting> {
        let text = self.value(RESOURCE_ATTRIBUTES).unwrap_or_default();
        let given = self.pairs(&text);
        let given =
            given.ok_or_else(|| expected(RESOURCE_ATTRIBUTES, "attributes, as name=value,…"))?;
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let name = self.value(SERVICE_NAME).map(|name| pair("service.name", &name));
        let own = [
            pair("service.name", env!("CARGO_PKG_NAME")),
            pair("service.version", env!("CARGO_PKG_VERSION")),
            pair("service.instance.id", &format!("{:032x}", fastrand::u128(..))),
        ];
        let mut known = HashSet::new();
        let all = name.into_iter().chain(given).chain(own);
        Ok(all.filter(|(name, _)| known.insert(name.clone())).collect())
    }

    fn sampler(&self) -> Result<TraceSampler, InvalidSetting> {
        const EXPECTED: &str =
            "always_on, always_off, traceidratio, or one of these after parentbased_";
        let Some(name) = self.value(SAMPLER) else { return Ok(TraceSampler::default()) };
        let own = name.strip_prefix("parentbased_").unwrap_or(&name);
        let ratio = match own {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.ratio()?,
            _ => return Err(expected(SAMPLER, EXPECTED)),
        };
        Ok(TraceSampler { ratio, follows_caller: own.len() < name.len() })
    }

    fn ratio(&self) -> Result<f64, InvalidSetting> {
        let Some(value) = self.value(SAMPLER_ARG) else { return Ok(1.0) };
        let ratio = value.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.ok_or_else(|| expected(SAMPLER_ARG, "a number, 0 to 1"))
    }

    /// Whether W3C Trace Context is among the propagators, as it is by default.
    fn propagates(&self) -> bool {
        let propagators = self.value(PROPAGATORS);
        propagators.is_none_or(|names| names.split(',').any(|name| name.trim() == "tracecontext"))
    }

    /// Values that other libraries of OpenTelemetry have for content on spans mean true.
    fn captures_content(&self) -> Result<bool, InvalidSetting> {
        match self.value(CAPTURE).map(|value| value.to_ascii_lowercase()).as_deref() {
            Some("true" | "span_only" | "span_and_event") => Ok(true),
            None | Some("false" | "no_content" | "event_only") => Ok(false),
            _ => Err(expected(CAPTURE, "true or false")),
        }
    }

    fn queue(&self) -> Result<SpanQueue, InvalidSetting> {
        let default = SpanQueue::default();
        let length = self.count(QUEUE_SIZE)?.unwrap_or(default.length);
        let batch = self.count(BATCH_SIZE)?.unwrap_or(default.batch).min(length);
        let delay = self.millis(SCHEDULE_DELAY)?.unwrap_or(default.delay);
        Ok(SpanQueue { length, batch, delay })
    }

    fn count(&self, variable: &'static str) -> Result<Option<usize>, InvalidSetting> {
        let Some(value) = self.value(variable) else { return Ok(None) };
        let count = value.parse().ok().filter(|count| (1..=MAX_QUEUE).contains(count));
        let count = count.and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| expected(variable, "a number of spans, 1 to 1000000")).map(Some)
    }
}
