//! Everything that can be wrong with a request, and what it is answered.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{Service, definition};

/// Method, path, content type, body → status, code, field.
type Case<'a> = (&'a str, &'a str, &'a str, &'a str, u16, &'a str, Option<&'a str>);

#[tokio::test]
async fn every_fault_is_a_problem_that_says_what_is_wrong() {
    let service = Service::start();
    let id = Uuid::new_v4();
    let instance = format!("/v1/instances/{id}");
    let simple = format!("/v1/instances/{}", id.simple());
    let unknown = format!("/v1/operations/{id}");
    let start = format!("{instance}/start");
    let console = format!("{instance}/console");
    let long = format!("\"{}\"", "x".repeat(9 << 20));
    let medium = format!("\"{}\"", "x".repeat(2 << 20));
    let extra = definition("x").to_string().replacen('{', "{\"nmae\":1,", 1);
    let deep = definition("x").to_string().replacen("\"vcpus\":1", "\"vcpus\":\"two\"", 1);
    let json = "application/json";
    let cases: &[Case] = &[
        ("GET", "/", "", "", 404, "not-found", None),
        ("GET", "/v1/nothing", "", "", 404, "not-found", None),
        ("GET", "/v1/instances/", "", "", 404, "not-found", None),
        ("POST", "/v1/instances", json, "{}", 405, "method-not-allowed", None),
        ("PATCH", &instance, json, "{}", 405, "method-not-allowed", None),
        ("TRACE", "/v1/host", "", "", 405, "method-not-allowed", None),
        ("GET", "/v1/instances/x", "", "", 400, "invalid-input", Some("id")),
        ("GET", &simple, "", "", 400, "invalid-input", Some("id")),
        ("GET", "/v1/instances/%00", "", "", 400, "invalid-input", Some("id")),
        ("GET", &instance, "", "", 404, "instance-not-found", None),
        ("GET", &unknown, "", "", 404, "operation-not-found", None),
        ("GET", "/v1/host?x=1", "", "", 400, "invalid-input", Some("x")),
        (
            "GET",
            "/v1/instances?powerstate=RUNNING",
            "",
            "",
            400,
            "invalid-input",
            Some("powerstate"),
        ),
        ("GET", "/v1/events?after=soon", "", "", 400, "invalid-input", Some("after")),
        ("GET", "/v1/events?after=1", "", "", 410, "events-gone", None),
        ("PUT", &instance, "text/plain", "{}", 415, "unsupported-media-type", None),
        ("PUT", &instance, json, "", 400, "invalid-input", Some("body")),
        ("PUT", &instance, json, "{", 400, "invalid-input", Some("body")),
        ("PUT", &instance, json, "\u{0}", 400, "invalid-input", Some("body")),
        ("PUT", &instance, json, "[]", 400, "invalid-input", Some("body")),
        ("PUT", &instance, json, &extra, 400, "invalid-input", Some("nmae")),
        ("PUT", &instance, json, &deep, 400, "invalid-input", Some("flavor.vcpus")),
        ("PUT", &instance, json, &long, 413, "payload-too-large", None),
        ("POST", &format!("{instance}/stop"), json, &medium, 413, "payload-too-large", None),
        ("POST", &start, json, "{\"timeout\":1}", 400, "invalid-input", Some("timeout")),
        ("POST", &start, "", "", 404, "instance-not-found", None),
        ("POST", &format!("{instance}/reboot"), json, "{}", 400, "invalid-input", Some("body")),
        ("GET", &console, "", "", 400, "invalid-input", Some("Upgrade")),
        (
            "GET",
            &format!("{instance}/exec?command=ls"),
            "",
            "",
            400,
            "invalid-input",
            Some("Upgrade"),
        ),
    ];
    for (method, path, content_type, body, status, code, field) in cases {
        let case = format!("{method} {path} {content_type} {}", &body[..body.len().min(40)]);
        let mut request = service.request(method, path);
        if !content_type.is_empty() {
            request = request.header("content-type", *content_type).body((*body).to_owned());
        }
        let answer = request.send().await.unwrap();
        let headers = answer.headers().clone();
        assert_eq!(answer.status(), *status, "{case}");
        let problem: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_problem(&problem, &headers, *status, code, *field, &case);
    }
}

fn assert_problem(
    problem: &Value,
    headers: &HeaderMap,
    status: u16,
    code: &str,
    field: Option<&str>,
    case: &str,
) {
    assert_eq!(headers["content-type"], "application/problem+json", "{case}");
    assert_eq!(problem["type"], format!("urn:berth:fault:{code}"), "{case}");
    assert_eq!(problem["code"], code, "{case}");
    assert_eq!(problem["status"], status, "{case}");
    assert_eq!(problem.get("field").and_then(Value::as_str), field, "{case}: {problem}");
    assert!(!problem["title"].as_str().unwrap().is_empty(), "{case}");
    assert!(!problem["detail"].as_str().unwrap().is_empty(), "{case}");
    let id = headers["x-openstack-request-id"].to_str().unwrap();
    assert!(id.starts_with("req-"), "{case}: {id}");
    assert_eq!(problem["request_id"], id, "{case}");
}

#[tokio::test]
async fn a_method_that_is_not_there_names_those_that_are() {
    let service = Service::start();
    let path = format!("/v1/instances/{}", Uuid::new_v4());
    for (path, allow) in [
        (path.as_str(), "DELETE, GET, PUT"),
        ("/v1/events", "GET"),
        (&format!("{path}/start"), "POST"),
    ] {
        let answer = service.request("OPTIONS", path).send().await.unwrap();
        assert_eq!(answer.headers()["allow"], allow);
    }
}

#[tokio::test]
async fn a_request_id_is_kept_when_it_is_one() {
    let service = Service::start();
    let given = "req-6f70656e-7374-4b63-8a00-62657274680a";
    let ask = async |id: &str| {
        let request = service.request("GET", "/v1/nothing").header("X-Openstack-Request-Id", id);
        let answer = request.send().await.unwrap();
        answer.headers()["x-openstack-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(ask(given).await, given);
    let made = ask("DROP TABLE").await;
    assert!(made.starts_with("req-") && made.len() == 40, "{made}");
    // It goes with the work as well.
    let path = format!("/v1/instances/{}", Uuid::new_v4());
    let request = service.request("PUT", &path).header("X-Openstack-Request-Id", given);
    request.json(&definition("one")).send().await.unwrap();
    let (_, operations) = service.call("GET", "/v1/operations", None).await;
    assert_eq!(operations["operations"][0]["request_id"], given);
}

#[tokio::test]
async fn a_panic_is_a_problem_and_the_service_goes_on() {
    let service = Service::start();
    service.backend.panic_on_host_stats();
    let (status, problem) = service.call("GET", "/v1/host/stats", None).await;
    assert_eq!((status, &problem["code"]), (500, &json!("internal")));
    assert_eq!(service.call("GET", "/v1/host/stats", None).await.0, 200);
}
