use super::*;
use crate::config::Config;

const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

fn traces(variables: &[(&str, &str)]) -> Option<TraceSettings> {
    with(variables).expect("valid settings").traces
}

fn with(variables: &[(&str, &str)]) -> Result<Config, InvalidSetting> {
    let lookup = |name: &str| variables.iter().find(|(own, _)| *own == name);
    Config::read(|name| lookup(name).map(|(_, value)| (*value).to_owned()))
}

#[test]
fn traces_are_off_unless_an_endpoint_is_set_and_nothing_turns_them_off() {
    assert!(traces(&[]).is_none());
    assert!(traces(&[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "odd")]).is_none());
    assert!(traces(&[COLLECTOR, ("OTEL_SDK_DISABLED", "TRUE")]).is_none());
    assert!(traces(&[COLLECTOR, ("OTEL_TRACES_EXPORTER", "none")]).is_none());
    assert!(traces(&[COLLECTOR]).is_some());
}

#[test]
fn variables_for_traces_alone_take_precedence() {
    let url = |variables: &[_]| traces(variables).unwrap().collector.url.to_string();
    assert_eq!(url(&[COLLECTOR]), "http://collector:4318/v1/traces");
    let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://other/in");
    assert_eq!(url(&[COLLECTOR, own]), "https://other/in");
    let set = traces(&[
        COLLECTOR,
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "Authorization=Basic%20eDp5, X-Team = a=b"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ]);
    let collector = set.unwrap().collector;
    assert_eq!(collector.timeout, Duration::from_secs(2));
    assert!(collector.compresses);
    let headers: Vec<_> =
        collector.headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
    assert_eq!(headers[0], ("authorization", &HeaderValue::from_static("Basic eDp5")));
    assert_eq!(headers[1], ("x-team", &HeaderValue::from_static("a=b")));
    assert!(headers.iter().all(|(_, value)| value.is_sensitive()) && headers.len() == 2);
    let limit = ("OTEL_BSP_EXPORT_TIMEOUT", "500");
    let collector = traces(&[COLLECTOR, limit]).unwrap().collector;
    assert_eq!(collector.timeout, Duration::from_millis(500));
}

#[test]
fn the_service_is_named_by_its_own_variable_first() {
    let names = |variables: &[_]| {
        let resource = traces(variables).unwrap().resource;
        let named = resource.iter().filter(|(name, _)| name == "service.name");
        named.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,deployment.environment=x%2Cy");
    assert_eq!(names(&[COLLECTOR]), ["gemini-concurrent-generation"]);
    assert_eq!(names(&[COLLECTOR, attributes]), ["a"]);
    assert_eq!(names(&[COLLECTOR, attributes, ("OTEL_SERVICE_NAME", "b")]), ["b"]);
    let resource = traces(&[COLLECTOR, attributes]).unwrap().resource;
    assert!(resource.contains(&("deployment.environment".to_owned(), "x,y".to_owned())));
}

#[test]
fn the_samplers_of_the_specification_are_known() {
    let sampler = |name, argument| {
        let set = [COLLECTOR, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)];
        let TraceSampler { ratio, follows_caller } = traces(&set).unwrap().sampler;
        (ratio, follows_caller)
    };
    assert_eq!(sampler("", ""), (1.0, true));
    assert_eq!(sampler("always_on", ""), (1.0, false));
    assert_eq!(sampler("always_off", ""), (0.0, false));
    assert_eq!(sampler("traceidratio", "0.25"), (0.25, false));
    assert_eq!(sampler("parentbased_always_off", ""), (0.0, true));
    assert_eq!(sampler("parentbased_traceidratio", "0.5"), (0.5, true));
}

#[test]
fn propagation_and_content_can_be_chosen() {
    let set = |name, value| traces(&[COLLECTOR, (name, value)]).unwrap();
    for (value, propagates) in
        [("", true), ("tracecontext,baggage", true), ("baggage", false), ("none", false)]
    {
        assert_eq!(set(PROPAGATORS, value).propagates, propagates, "{value}");
    }
    for (value, captures) in [("", false), ("true", true), ("SPAN_ONLY", true), ("false", false)] {
        assert_eq!(set(CAPTURE, value).captures_content, captures, "{value}");
    }
}

#[test]
fn an_invalid_variable_is_named_and_not_quoted() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "host-77:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@collector"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=secret%0d%0ab"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file.pem"),
        ("OTEL_SDK_DISABLED", "perhaps"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_RESOURCE_ATTRIBUTES", "secret"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-77"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "0.77"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-77"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "some"),
    ] {
        let invalid = with(&[(name, value), COLLECTOR]).expect_err(name);
        assert_eq!(invalid.variable, name);
        assert!(!invalid.to_string().contains(value), "{invalid}");
        assert!(OTEL_VARIABLES.contains(&name), "{name}");
    }
    let ratio = ("OTEL_TRACES_SAMPLER_ARG", "2");
    let invalid = with(&[COLLECTOR, ("OTEL_TRACES_SAMPLER", "traceidratio"), ratio]);
    assert_eq!(invalid.expect_err("above 1").variable, ratio.0);
    let quoted = with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "\"http://collector\"")]);
    assert_eq!(quoted.expect_err("quotes").variable, "OTEL_EXPORTER_OTLP_ENDPOINT");
}
