//! `GET /metrics`, for Prometheus.

use axum::extract::State;
use axum::response::IntoResponse;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, VARY};

use super::error::ApiError;
use crate::gateway::Gateway;
use crate::metrics::Format;

/// Read metrics in Prometheus's text format, or in OpenMetrics if the header `Accept` prefers it.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "service",
    responses((status = OK, description = "The metrics", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    let format = format(&headers);
    let text = gateway.metrics.encode(format).map_err(|_| ApiError::internal())?;
    Ok(([(CONTENT_TYPE, format.content_type()), (VARY, "accept")], text))
}

/// The format that a scraper prefers.
fn format(headers: &HeaderMap) -> Format {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let accepted: Vec<_> = accepted.flat_map(|value| value.split(',')).map(media_type).collect();
    let weight = |names: &[&str]| {
        let named = accepted.iter().filter(|(name, _)| names.contains(&name.as_str()));
        named.map(|(_, weight)| *weight).fold(0.0, f32::max)
    };
    let open_metrics = weight(&["application/openmetrics-text"]);
    if open_metrics > 0.0 && open_metrics >= weight(&["text/plain"]) {
        Format::OpenMetrics
    } else {
        Format::Text
    }
}

/// The name of a media type in `Accept`, and its weight: 1 unless it says otherwise.
fn media_type(value: &str) -> (String, f32) {
    let mut parts = value.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let weight =
        parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
    (name, weight.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn preferred(accept: &'static str) -> Format {
        format(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0,\
                          application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(preferred(prometheus), Format::OpenMetrics);
        assert_eq!(preferred("application/openmetrics-text"), Format::OpenMetrics);
        for text in [
            "*/*",
            "text/plain",
            "text/html, application/xhtml+xml, */*;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.5, text/plain;q=0.9",
            "application/openmetrics-text;q=nonsense",
        ] {
            assert_eq!(preferred(text), Format::Text, "{text}");
        }
        assert_eq!(format(&HeaderMap::new()), Format::Text);
    }
}
