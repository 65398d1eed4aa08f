//! Metrics for Prometheus, all named `berth_…`.
//!
//! What is counted over time lives in one registry of the process. What is
//! simply so now (instances by state, images) is read when Prometheus asks,
//! so it can never drift from the truth.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use crate::fault::{OrFault, Result};
use crate::types::{OperationStatus, PowerState};

/// Seconds; a request takes from 0.1 ms (a read) to minutes (a graceful stop).
const BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0,
];

/// What the process counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    operations: IntCounterVec,
    operation_seconds: HistogramVec,
    panics: prometheus::IntCounter,
    streams: IntGauge,
}

/// What is so at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// Power state of every instance.
    pub power_states: Vec<PowerState>,
    /// Number of images.
    pub images: usize,
    /// Number of operations that have not ended.
    pub operations_unfinished: usize,
}

/// The process's metrics.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
        // Names and labels are constants, which every test run exercises.
        Metrics::new().expect("the metrics' names are valid and distinct")
    });
    &METRICS
}

impl Metrics {
    fn new() -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            let histogram = HistogramVec::new(options, labels)?;
            registry.register(Box::new(histogram.clone()))?;
            prometheus::Result::Ok(histogram)
        };
        let requests = counter(
            "berth_http_requests_total",
            "HTTP requests answered, by method, route and status.",
            &["method", "route", "status"],
        )?;
        let request_seconds = histogram(
            "berth_http_request_duration_seconds",
            "Time until an HTTP request was answered; streams: until their first byte.",
            &["method", "route", "status"],
        )?;
        let operations = counter(
            "berth_operations_total",
            "Operations ended, by kind and result.",
            &["kind", "result"],
        )?;
        let operation_seconds = histogram(
            "berth_operation_duration_seconds",
            "Time from an operation's request to its end, waiting in its queue included.",
            &["kind"],
        )?;
        let panics = prometheus::IntCounter::new(
            "berth_http_panics_total",
            "Requests whose handler panicked: defects of berth.",
        )?;
        registry.register(Box::new(panics.clone()))?;
        let streams = IntGauge::new(
            "berth_http_streams",
            "Event streams, consoles and commands that clients hold open.",
        )?;
        registry.register(Box::new(streams.clone()))?;
        register_build_info(&registry)?;
        Ok(Metrics {
            registry,
            requests,
            request_seconds,
            operations,
            operation_seconds,
            panics,
            streams,
        })
    }

    /// Counts an answered request. `route` is the path's pattern, never the path.
    pub fn request_answered(&self, method: &str, route: &str, status: u16, seconds: f64) {
        let status = status.to_string();
        let labels = [method, route, status.as_str()];
        self.requests.with_label_values(&labels).inc();
        self.request_seconds.with_label_values(&labels).observe(seconds);
    }

    /// Counts a panic in a handler.
    pub fn request_panicked(&self) {
        self.panics.inc();
    }

    /// Counts a stream as open until the guard is dropped.
    pub fn stream_opened(&self) -> StreamGuard {
        self.streams.inc();
        StreamGuard(self.streams.clone())
    }

    /// Counts an ended operation.
    pub fn operation_ended(&self, kind: &str, status: OperationStatus, seconds: f64) {
        let result = if status == OperationStatus::Succeeded { "succeeded" } else { "failed" };
        self.operations.with_label_values(&[kind, result]).inc();
        self.operation_seconds.with_label_values(&[kind]).observe(seconds.max(0.0));
    }

    /// Everything in Prometheus's text format.
    pub fn render(&self, present: &Present) -> Result<String> {
        let mut families = self.registry.gather();
        families.extend(present.gather().or_fault("reading the metrics")?);
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).or_fault("writing the metrics")?;
        String::from_utf8(text).or_fault("writing the metrics")
    }
}

/// Counts a stream as open.
#[derive(Debug)]
pub struct StreamGuard(IntGauge);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Present {
    fn gather(&self) -> prometheus::Result<Vec<prometheus::proto::MetricFamily>> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let instances =
            gauge("berth_instances", "Instances on this host, by power state.", &["power_state"])?;
        // States without instances are shown as 0, so that graphs have no holes.
        let states = [
            PowerState::NoState,
            PowerState::Running,
            PowerState::Paused,
            PowerState::Shutdown,
            PowerState::Crashed,
            PowerState::Suspended,
        ];
        let mut counts: BTreeMap<String, u32> =
            states.iter().map(|state| (state.to_string(), 0)).collect();
        for state in &self.power_states {
            *counts.entry(state.to_string()).or_default() += 1;
        }
        for (state, count) in counts {
            instances.with_label_values(&[&state]).set(f64::from(count));
        }
        // Counts of things in memory are far below 2^53.
        gauge("berth_images", "Images in this host's store.", &[])?
            .with_label_values::<&str>(&[])
            .set(self.images as f64);
        gauge("berth_operations_unfinished", "Operations queued or running.", &[])?
            .with_label_values::<&str>(&[])
            .set(self.operations_unfinished as f64);
        Ok(registry.gather())
    }
}

fn register_build_info(registry: &Registry) -> prometheus::Result<()> {
    let options = Opts::new("berth_build_info", "1; the version is in the label.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let info = IntGauge::with_opts(options)?;
    info.set(1);
    registry.register(Box::new(info))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A registry of its own, so that other tests' counts do not show.
    #[test]
    fn every_metric_shows_what_was_counted() {
        let metrics = Metrics::new().unwrap();
        metrics.request_answered("GET", "/v1/host", 200, 0.003);
        metrics.request_panicked();
        metrics.operation_ended("instance.start", OperationStatus::Succeeded, 0.3);
        metrics.operation_ended("instance.start", OperationStatus::Failed, 0.3);
        let stream = metrics.stream_opened();
        let present = Present {
            power_states: vec![PowerState::Running, PowerState::Running, PowerState::Shutdown],
            images: 3,
            operations_unfinished: 1,
        };
        let text = metrics.render(&present).unwrap();
        for line in [
            "berth_http_requests_total{method=\"GET\",route=\"/v1/host\",status=\"200\"} 1",
            "berth_http_request_duration_seconds_count{method=\"GET\",route=\"/v1/host\",status=\"200\"} 1",
            "berth_http_request_duration_seconds_bucket{method=\"GET\",route=\"/v1/host\",status=\"200\",le=\"0.0025\"} 0",
            "berth_http_request_duration_seconds_bucket{method=\"GET\",route=\"/v1/host\",status=\"200\",le=\"0.005\"} 1",
            "berth_operations_total{kind=\"instance.start\",result=\"succeeded\"} 1",
            "berth_operations_total{kind=\"instance.start\",result=\"failed\"} 1",
            "berth_operation_duration_seconds_count{kind=\"instance.start\"} 2",
            "berth_operations_unfinished 1",
            "berth_instances{power_state=\"RUNNING\"} 2",
            "berth_instances{power_state=\"SHUTDOWN\"} 1",
            "berth_instances{power_state=\"PAUSED\"} 0",
            "berth_images 3",
            "berth_http_panics_total 1",
            "berth_http_streams 1",
            concat!("berth_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        drop(stream);
        assert!(metrics.render(&present).unwrap().contains("berth_http_streams 0\n"));
        // Every family that exists is among those above: none is there for show.
        assert_eq!(text.matches("# TYPE ").count(), 10);
    }
}
