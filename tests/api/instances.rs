//! Resources: instances, interfaces, images, operations.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::fake::IMAGE;
use crate::{Service, definition, read, vif};

#[tokio::test]
async fn an_instance_lives_and_dies() {
    let service = Service::start();
    let path = format!("/v1/instances/{}", Uuid::new_v4());
    let created = service.request("PUT", &path).json(&definition("one")).send().await.unwrap();
    assert_eq!(created.status(), 201);
    assert_eq!(created.headers()["location"], path);
    let (status, again) = service.call("PUT", &path, Some(definition("one"))).await;
    assert_eq!((status, &again["power_state"]), (200, &json!("SHUTDOWN")));
    let (status, other) = service.call("PUT", &path, Some(definition("two"))).await;
    assert_eq!((status, &other["code"]), (409, &json!("instance-exists")));

    let flavor = json!({"vcpus": 2, "memory_mb": 128, "root_gb": 2});
    let bigger = json!({"vcpus": 2, "memory_mb": 256, "root_gb": 2});
    for (action, body, state) in [
        ("start", None, "RUNNING"),
        ("pause", None, "PAUSED"),
        ("unpause", Some(json!({})), "RUNNING"),
        ("suspend", None, "SUSPENDED"),
        ("resume", None, "RUNNING"),
        ("resize", Some(json!({"flavor": flavor})), "RUNNING"),
        ("reboot", Some(json!({"type": "SOFT", "timeout": 5})), "RUNNING"),
        ("stop", Some(json!({"timeout": 0})), "SHUTDOWN"),
        ("stop", None, "SHUTDOWN"),
        ("resize", Some(json!({"flavor": bigger, "keep": true, "timeout": 5})), "SHUTDOWN"),
        ("resize/revert", None, "SHUTDOWN"),
        ("resize/confirm", Some(json!({})), "SHUTDOWN"),
    ] {
        let (status, instance) = service.call("POST", &format!("{path}/{action}"), body).await;
        assert_eq!((status, &instance["power_state"]), (200, &json!(state)), "{action}");
    }
    let wanted = json!({"image_id": IMAGE, "environment": {"A": "b"}});
    let (status, rescued) = service.call("POST", &format!("{path}/rescue"), Some(wanted)).await;
    assert_eq!((status, &rescued["power_state"]), (200, &json!("RUNNING")));
    assert_eq!(rescued["rescue_image_id"], json!(IMAGE));
    let (status, unrescued) = service.call("POST", &format!("{path}/unrescue"), None).await;
    assert_eq!((status, &unrescued["rescue_image_id"]), (200, &Value::Null));
    let bad = json!({"image_id": IMAGE, "password": "in no log"});
    let (status, refused) = service.call("POST", &format!("{path}/rescue"), Some(bad)).await;
    assert_eq!((status, &refused["code"]), (400, &json!("invalid-input")));
    service.call("POST", &format!("{path}/stop"), None).await;

    let (_, instance) = service.call("GET", &path, None).await;
    assert_eq!(instance["flavor"]["vcpus"], 2);
    assert_eq!(instance["power_state_number"], 4);

    assert_eq!(service.call("DELETE", &path, None).await.0, 204);
    for method in ["GET", "DELETE"] {
        let (status, gone) = service.call(method, &path, None).await;
        assert_eq!((status, &gone["code"]), (404, &json!("instance-not-found")), "{method}");
    }
}

#[tokio::test]
async fn the_list_can_be_narrowed_to_a_state() {
    let service = Service::start();
    let running = service.running_instance().await;
    let stopped = Uuid::new_v4();
    service.call("PUT", &format!("/v1/instances/{stopped}"), Some(definition("two"))).await;
    let ids = |list: Value| -> Vec<String> {
        let instances = list["instances"].as_array().unwrap().iter();
        instances.map(|i| i["id"].as_str().unwrap().to_owned()).collect()
    };
    let (_, all) = service.call("GET", "/v1/instances", None).await;
    assert_eq!(ids(all).len(), 2);
    let (_, some) = service.call("GET", "/v1/instances?power_state=RUNNING", None).await;
    assert_eq!(ids(some), [running.to_string()]);
    let (status, bad) = service.call("GET", "/v1/instances?power_state=ASLEEP", None).await;
    assert_eq!((status, &bad["field"]), (400, &json!("power_state")));
}

#[tokio::test]
async fn interfaces_come_and_go() {
    let service = Service::start();
    let id = service.running_instance().await;
    let port = Uuid::new_v4();
    let list = format!("/v1/instances/{id}/interfaces");
    let path = format!("{list}/{port}");
    let (status, fault) = service.call("PUT", &path, Some(vif(Uuid::new_v4()))).await;
    assert_eq!((status, &fault["field"]), (400, &json!("id")));
    assert_eq!(service.call("PUT", &path, Some(vif(port))).await.0, 201);
    assert_eq!(service.call("PUT", &path, Some(vif(port))).await.0, 200);
    let mut other = vif(port);
    other["mtu"] = json!(9000);
    let (status, fault) = service.call("PUT", &path, Some(other)).await;
    assert_eq!((status, &fault["code"]), (409, &json!("interface-exists")));
    let (_, interfaces) = service.call("GET", &list, None).await;
    assert_eq!(interfaces["interfaces"][0]["mtu"], 1500);
    assert_eq!(service.call("DELETE", &path, None).await.0, 204);
    let (status, fault) = service.call("DELETE", &path, None).await;
    assert_eq!((status, &fault["code"]), (404, &json!("interface-not-found")));
    let (_, interfaces) = service.call("GET", &list, None).await;
    assert_eq!(interfaces["interfaces"], json!([]));
}

#[tokio::test]
async fn volumes_come_grow_and_go() {
    let service = Service::start();
    let id = service.running_instance().await;
    let list = format!("/v1/instances/{id}/volumes");
    let path = format!("{list}/{}", Uuid::new_v4());
    let body = |source: Value| Some(json!({"source": source, "serial": "held"}));
    for (source, field) in [
        (json!({"block": {"path": "dev/sdb"}}), "source.block.path"),
        (json!({"file": {"path": ""}}), "source.file.path"),
    ] {
        let (status, fault) = service.call("PUT", &path, body(source)).await;
        assert_eq!((status, &fault["field"]), (400, &json!(field)));
    }
    for bad in [
        json!({"tape": {"path": "/x"}}),
        json!({"file": {"path": "/x", "offset": 1}}),
        json!({"file": {"path": "/x"}, "block": {"path": "/y"}}),
        json!("/x"),
    ] {
        let (status, fault) = service.call("PUT", &path, body(bad)).await;
        assert_eq!((status, &fault["code"]), (400, &json!("invalid-input")));
    }
    let wanted = || body(json!({"block": {"path": "/dev/sdb"}}));
    let (status, volume) = service.call("PUT", &path, wanted()).await;
    assert_eq!((status, &volume["device"]), (201, &json!("/dev/vdb")));
    assert_eq!(service.call("PUT", &path, wanted()).await.0, 200);
    let other = body(json!({"block": {"path": "/dev/sdc"}}));
    let (status, fault) = service.call("PUT", &path, other).await;
    assert_eq!((status, &fault["code"]), (409, &json!("volume-exists")));
    let (_, instance) = service.call("GET", &format!("/v1/instances/{id}"), None).await;
    assert_eq!(instance["volumes"][0]["source"]["block"]["path"], "/dev/sdb");
    let (status, larger) = service.call("POST", &format!("{path}/extend"), None).await;
    assert_eq!((status, &larger["bytes"]), (200, &json!(2u64 << 30)));
    let (status, fault) = service.call("DELETE", &path, None).await;
    assert_eq!((status, &fault["code"]), (409, &json!("volume-busy")));
    let forced = format!("{path}?force=maybe");
    assert_eq!(service.call("DELETE", &forced, None).await.1["field"], "force");
    assert_eq!(service.call("DELETE", &format!("{path}?force=true"), None).await.0, 204);
    let (status, fault) = service.call("DELETE", &path, None).await;
    assert_eq!((status, &fault["code"]), (404, &json!("volume-not-found")));
    let (status, fault) = service.call("POST", &format!("{path}/extend"), None).await;
    assert_eq!((status, &fault["code"]), (404, &json!("volume-not-found")));
    let (_, volumes) = service.call("GET", &list, None).await;
    assert_eq!(volumes["volumes"], json!([]));
}

#[tokio::test]
async fn images_are_imported_and_deleted() {
    let service = Service::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = format!("/v1/images/{}", Uuid::new_v4());
    let body = json!({"name": "app", "source": {"type": "file", "path": file.path()}});
    let made = service.request("PUT", &path).json(&body).send().await.unwrap();
    assert_eq!(
        (made.status().as_u16(), &made.headers()["location"]),
        (201, &path.parse().unwrap())
    );
    assert_eq!(service.call("PUT", &path, Some(body)).await.0, 200);
    let (_, images) = service.call("GET", "/v1/images", None).await;
    assert_eq!(images["images"].as_array().unwrap().len(), 2);
    assert_eq!(service.call("GET", &path, None).await.1["name"], "app");
    assert_eq!(service.call("DELETE", &path, None).await.0, 204);
    assert_eq!(service.call("GET", &path, None).await.1["code"], "image-not-found");
    service.running_instance().await;
    let (status, fault) = service.call("DELETE", &format!("/v1/images/{IMAGE}"), None).await;
    assert_eq!((status, &fault["code"]), (409, &json!("image-in-use")));
    // The operation's fault becomes the answer.
    let body = json!({"source": {"type": "file", "path": "/nowhere/at/all"}});
    let path = format!("/v1/images/{}", Uuid::new_v4());
    let (status, fault) = service.call("PUT", &path, Some(body)).await;
    assert_eq!((status, &fault["field"]), (400, &json!("source.path")));
}

#[tokio::test]
async fn images_are_inspected_and_what_is_refused_is_an_answer() {
    let service = Service::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let inspect = async |body: Value| service.call("POST", "/v1/images/inspect", Some(body)).await;
    let source = json!({"type": "file", "path": file.path()});
    let (status, found) = inspect(json!({"source": source})).await;
    assert_eq!((status, &found["format"]), (200, &json!("rootfs-tar")));
    assert!(found.get("refusal").is_none(), "{found}");
    let (status, found) = inspect(json!({"source": source, "size": 2})).await;
    assert_eq!((status, &found["refusal"]["code"]), (200, &json!("image-corrupt")));
    // What is wrong with the request is no refusal of the image.
    let nowhere = json!({"source": {"type": "file", "path": "/nowhere/at/all"}});
    let (status, fault) = inspect(nowhere).await;
    assert_eq!((status, &fault["field"]), (400, &json!("source.path")));
    assert_eq!(inspect(json!({"source": source, "name": "x"})).await.0, 400);
    let (_, images) = service.call("GET", "/v1/images", None).await;
    assert_eq!(images["images"].as_array().unwrap().len(), 1);
    assert_eq!(service.call("GET", "/v1/images/inspect", None).await.0, 400);
}

#[tokio::test]
async fn a_client_that_prefers_not_to_wait_gets_the_operation() {
    let service = Service::start();
    service.backend.hold();
    let path = format!("/v1/instances/{}", Uuid::new_v4());
    let put = || service.request("PUT", &path).json(&definition("one"));
    let accepted = put().header("Prefer", "respond-async").send().await.unwrap();
    assert_eq!(accepted.status(), 202);
    assert_eq!(accepted.headers()["preference-applied"], "respond-async");
    let location = accepted.headers()["location"].to_str().unwrap().to_owned();
    let (_, operation) = read(accepted).await;
    assert_eq!(location, format!("/v1/operations/{}", operation["id"].as_str().unwrap()));
    assert_eq!(operation["kind"], "instance.create");

    // The same request again joins the same operation, and need not wait either.
    let waited = put().header("Prefer", "wait=0").send().await.unwrap();
    assert_eq!(waited.headers()["preference-applied"], "wait");
    let (status, joined) = read(waited).await;
    assert_eq!((status, &joined["id"]), (202, &operation["id"]));
    let (status, now) = service.call("GET", &location, None).await;
    assert_eq!((status, &now["status"]), (200, &json!("queued")));

    // A long poll sees the end when it comes.
    let poll = tokio::spawn(service.request("GET", &format!("{location}?wait=300")).send());
    service.backend.release();
    let (_, ended) = read(poll.await.unwrap().unwrap()).await;
    assert_eq!(ended["status"], "succeeded");
    assert_eq!(put().header("Prefer", "wait=300").send().await.unwrap().status(), 200);
    let (_, operations) = service.call("GET", "/v1/operations", None).await;
    assert_eq!(operations["operations"][0]["id"], operation["id"]);
}

#[tokio::test]
async fn an_operation_outlives_its_connection() {
    let service = Service::start();
    service.backend.hold();
    let id = Uuid::new_v4();
    let path = format!("/v1/instances/{id}");
    let request = service.request("PUT", &path).json(&definition("one"));
    let client = tokio::spawn(request.send());
    // The client leaves once its request has been taken.
    while service.call("GET", "/v1/operations", None).await.1["operations"] == json!([]) {
        tokio::task::yield_now().await;
    }
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    service.backend.release();
    let (status, _) = service.call("PUT", &path, Some(definition("one"))).await;
    assert_eq!(status, 200, "the instance was made although nobody waited");
}

#[tokio::test]
async fn work_that_panics_is_a_fault_and_not_a_hang() {
    let service = Service::start();
    let path = format!("/v1/instances/{}", Uuid::new_v4());
    let definition = definition(crate::support::fake::PANICS);
    let (status, fault) = service.call("PUT", &path, Some(definition)).await;
    assert_eq!((status, &fault["code"]), (500, &json!("internal")));
}

#[tokio::test]
async fn statistics_of_one_and_of_all() {
    let service = Service::start();
    let running = service.running_instance().await;
    let stopped = Uuid::new_v4();
    service.call("PUT", &format!("/v1/instances/{stopped}"), Some(definition("two"))).await;
    let (status, stats) =
        service.call("GET", &format!("/v1/instances/{running}/stats"), None).await;
    assert_eq!((status, &stats["pids"]["limit"]), (200, &json!(4096)));
    let (status, _) = service.call("GET", &format!("/v1/instances/{stopped}/stats"), None).await;
    assert_eq!(status, 409);
    let (_, all) = service.call("GET", "/v1/stats", None).await;
    assert_eq!(all["stats"].as_array().unwrap().len(), 1);
    assert_eq!(all["stats"][0]["id"], running.to_string());
}

#[tokio::test]
async fn console_output_is_bytes_from_the_end() {
    let service = Service::start();
    let id = service.running_instance().await;
    let output = async |query: &str| {
        let path = format!("/v1/instances/{id}/console/output{query}");
        let response = service.request("GET", &path).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/octet-stream");
        response.bytes().await.unwrap()
    };
    assert!(output("").await.starts_with(b"booting \xff"));
    assert_eq!(&output("?length=2").await[..], b"\r\n");
    assert_eq!(output("?length=0").await.len(), 0);
}
