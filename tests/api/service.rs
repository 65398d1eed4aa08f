//! The service's own resources.

use crate::Service;

#[tokio::test]
async fn health_host_and_checks() {
    let service = Service::start();
    let health = service.request("GET", "/healthz").send().await.unwrap();
    assert_eq!((health.status().as_u16(), health.text().await.unwrap()), (200, "ok\n".into()));
    let (_, host) = service.call("GET", "/v1/host", None).await;
    assert_eq!(host["hypervisor_type"], "berth");
    assert_eq!(service.call("GET", "/v1/host/stats", None).await.0, 200);
    let (_, checks) = service.call("GET", "/v1/host/checks", None).await;
    assert_eq!(checks["checks"][0]["status"], "ok");
}

/// The value of a metric's line; 0 when it is not there yet.
fn value(metrics: &str, line: &str) -> f64 {
    let rest = metrics.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    rest.map_or(0.0, |rest| rest.parse().unwrap())
}

#[tokio::test]
async fn every_metric_moves_with_what_it_counts() {
    let service = Service::start();
    let read = async || {
        let answer = service.request("GET", "/metrics").send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
        answer.text().await.unwrap()
    };
    let before = read().await;
    service.running_instance().await;
    service.call("GET", "/v1/no/such/path", None).await;
    service.call("POST", "/v1/instances/x/start", None).await;
    let stream = service.request("GET", "/v1/events").send().await.unwrap();
    service.backend.hold();
    let path = format!("/v1/instances/{}", uuid::Uuid::new_v4());
    let held = service.request("PUT", &path).header("Prefer", "respond-async");
    held.json(&crate::definition("two")).send().await.unwrap();
    let after = read().await;
    // Other tests of this process count too: these grow by at least so much.
    for (line, growth) in [
        (
            "berth_http_requests_total{method=\"PUT\",route=\"/v1/instances/{id}\",status=\"201\"}",
            1.0,
        ),
        ("berth_http_requests_total{method=\"GET\",route=\"(none)\",status=\"404\"}", 1.0),
        (
            "berth_http_requests_total{method=\"POST\",route=\"/v1/instances/{id}/start\",status=\"400\"}",
            1.0,
        ),
        (
            "berth_http_request_duration_seconds_count{method=\"PUT\",route=\"/v1/instances/{id}\",status=\"201\"}",
            1.0,
        ),
        ("berth_operations_total{kind=\"instance.create\",result=\"succeeded\"}", 1.0),
        ("berth_operation_duration_seconds_count{kind=\"instance.start\"}", 1.0),
    ] {
        let grown = value(&after, line) - value(&before, line);
        assert!(grown >= growth, "{line} grew by {grown}");
    }
    // These are of this service alone.
    assert_eq!(value(&before, "berth_instances{power_state=\"RUNNING\"}"), 0.0);
    assert_eq!(value(&after, "berth_instances{power_state=\"RUNNING\"}"), 1.0);
    assert_eq!(value(&after, "berth_images"), 1.0);
    assert_eq!(value(&before, "berth_operations_unfinished"), 0.0);
    assert_eq!(value(&after, "berth_operations_unfinished"), 1.0);
    assert!(value(&after, "berth_http_streams") >= 1.0);
    assert!(after.contains("berth_build_info{version=\""));
    drop(stream);
}
