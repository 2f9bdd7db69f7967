//! The metrics of the process that Prometheus's client libraries have in common. They are read from
//! `/proc`, and are absent where there is none.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

/// Reads the metrics of this process at each scrape.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    #[cfg(not(target_os = "linux"))]
    fn encode(&self, _encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        linux::encode(encoder)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fmt;

    use procfs::process::{LimitValue, Process, Stat};
    use procfs::{boot_time_secs, page_size, ticks_per_second};
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::counter::ConstCounter;
    use prometheus_client::metrics::gauge::ConstGauge;

    pub fn encode(mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(process) = Process::myself() else { return Ok(()) };
        if let Ok(stat) = process.stat() {
            let seconds = ConstCounter::new(seconds(stat.utime.saturating_add(stat.stime)));
            let help = "Processor time of all threads";
            let kind = seconds.metric_type();
            let descriptor = encoder.encode_descriptor("process_cpu_seconds", help, None, kind)?;
            seconds.encode(descriptor)?;
            for (name, help, value) in of_stat(&stat) {
                gauge(&mut encoder, name, help, value)?;
            }
        }
        if let Ok(count) = process.fd_count() {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", count as f64)?;
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(limit) = limits.max_open_files.soft_limit
        {
            let help = "The most file descriptors that may be open";
            gauge(&mut encoder, "process_max_fds", help, limit as f64)?;
        }
        Ok(())
    }

    fn of_stat(stat: &Stat) -> impl Iterator<Item = (&'static str, &'static str, f64)> {
        let resident = stat.rss.saturating_mul(page_size()) as f64;
        let started = boot_time_secs().map(|boot| boot as f64 + seconds(stat.starttime));
        let started = started
            .map(|started| ("process_start_time_seconds", "When the process was started", started));
        [
            ("process_resident_memory_bytes", "Memory in use", resident),
            ("process_virtual_memory_bytes", "Memory that is mapped", stat.vsize as f64),
            ("process_threads", "Threads", stat.num_threads as f64),
        ]
        .into_iter()
        .chain(started.ok())
    }

    fn gauge(
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: f64,
    ) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    fn seconds(ticks: u64) -> f64 {
        ticks as f64 / ticks_per_second() as f64
    }
}
