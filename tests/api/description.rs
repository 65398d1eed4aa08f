//! The API's description: the kept one is the served one, and it means what it should.

use std::collections::BTreeSet;

use berth::fault::FaultKind;
use serde_json::{Value, json};

use crate::Service;

fn document() -> Value {
    serde_json::from_str(&berth::api::document_json()).unwrap()
}

/// Path, method and description of every operation.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().iter();
            methods.map(|(method, operation)| (path.clone(), method.clone(), operation.clone()))
        })
        .collect()
}

#[test]
fn the_kept_document_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/berth-v1.json");
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == berth::api::document_json(),
        "openapi/berth-v1.json is not what the code describes; if the change is meant:\n    \
         cargo run -- openapi > openapi/berth-v1.json"
    );
}

#[tokio::test]
async fn the_served_document_is_the_generated_one() {
    let service = Service::start();
    assert_eq!(service.call("GET", "/v1/openapi.json", None).await, (200, document()));
}

#[test]
fn these_operations_are_the_api() {
    let document = document();
    let described: BTreeSet<String> = operations(&document)
        .iter()
        .map(|(path, method, operation)| {
            format!("{method} {path} {}", operation["operationId"].as_str().unwrap())
        })
        .collect();
    let promised: BTreeSet<String> = [
        "get /healthz get_health",
        "get /metrics get_metrics",
        "get /v1/openapi.json get_description",
        "get /v1/host get_host",
        "get /v1/host/stats get_host_stats",
        "get /v1/host/checks get_host_checks",
        "get /v1/instances list_instances",
        "put /v1/instances/{id} create_instance",
        "get /v1/instances/{id} get_instance",
        "delete /v1/instances/{id} delete_instance",
        "post /v1/instances/{id}/start start_instance",
        "post /v1/instances/{id}/stop stop_instance",
        "post /v1/instances/{id}/reboot reboot_instance",
        "post /v1/instances/{id}/pause pause_instance",
        "post /v1/instances/{id}/unpause unpause_instance",
        "post /v1/instances/{id}/suspend suspend_instance",
        "post /v1/instances/{id}/resume resume_instance",
        "post /v1/instances/{id}/resize resize_instance",
        "post /v1/instances/{id}/resize/confirm confirm_resize",
        "post /v1/instances/{id}/resize/revert revert_resize",
        "post /v1/instances/{id}/migrate migrate_instance",
        "post /v1/instances/{id}/migrate/revert revert_migration",
        "put /v1/incoming/{id} begin_incoming",
        "put /v1/incoming/{id}/layers/{digest} put_layer",
        "put /v1/incoming/{id}/files/{file} put_file",
        "post /v1/incoming/{id}/commit commit_incoming",
        "post /v1/incoming/{id}/acknowledge acknowledge_incoming",
        "delete /v1/incoming/{id} end_incoming",
        "post /v1/instances/{id}/password set_password",
        "post /v1/instances/{id}/dump dump_instance",
        "post /v1/instances/{id}/quiesce quiesce_instance",
        "post /v1/instances/{id}/unquiesce unquiesce_instance",
        "post /v1/instances/{id}/snapshot snapshot_instance",
        "post /v1/instances/{id}/rescue rescue_instance",
        "post /v1/instances/{id}/unrescue unrescue_instance",
        "get /v1/instances/{id}/interfaces list_interfaces",
        "put /v1/instances/{id}/interfaces/{port_id} attach_interface",
        "delete /v1/instances/{id}/interfaces/{port_id} detach_interface",
        "get /v1/instances/{id}/volumes list_volumes",
        "put /v1/instances/{id}/volumes/{volume_id} attach_volume",
        "delete /v1/instances/{id}/volumes/{volume_id} detach_volume",
        "post /v1/instances/{id}/volumes/{volume_id}/extend extend_volume",
        "get /v1/instances/{id}/console/output get_console_output",
        "get /v1/instances/{id}/console attach_console",
        "put /v1/instances/{id}/remote-consoles/{protocol} open_remote_console",
        "delete /v1/instances/{id}/remote-consoles/{protocol} close_remote_console",
        "get /v1/instances/{id}/exec exec",
        "get /v1/instances/{id}/stats get_stats",
        "get /v1/stats list_stats",
        "get /v1/images list_images",
        "post /v1/images/inspect inspect_image",
        "put /v1/images/{id} import_image",
        "get /v1/images/{id} get_image",
        "delete /v1/images/{id} delete_image",
        "get /v1/operations list_operations",
        "get /v1/operations/{id} get_operation",
        "delete /v1/operations/{id} abort_operation",
        "get /v1/events follow_events",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(described, promised);
}

#[test]
fn every_operation_describes_its_problems() {
    for (path, method, operation) in operations(&document()) {
        let responses = operation["responses"].as_object().unwrap();
        let about = format!("{method} {path}");
        for status in ["400", "500"] {
            assert!(responses.contains_key(status), "{about} has no {status}");
        }
        for (status, response) in responses {
            assert!(response["headers"]["X-Openstack-Request-Id"].is_object(), "{about} {status}");
            if status.as_str() >= "400" {
                let schema = &response["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Problem", "{about} {status}");
            }
        }
        let waits = responses.contains_key("202");
        let parameters = operation["parameters"].as_array().unwrap();
        assert_eq!(parameters.iter().any(|p| p["name"] == "Prefer"), waits, "{about}");
        // An inspection changes nothing, and its answer is all that comes of it; a port is opened at once.
        // Another host's service has nothing else to do.
        let at_once = ["/v1/images/{id}", "/v1/images/inspect", "/v1/operations/{id}"]
            .contains(&path.as_str())
            || path.contains("/remote-consoles/")
            || path.starts_with("/v1/incoming/");
        assert!(method == "get" || waits || at_once, "{about} cannot be async");
        for name in ["id", "port_id"].iter().filter(|n| path.contains(&format!("{{{n}}}"))) {
            let parameter = parameters.iter().find(|p| p["name"] == *name).unwrap();
            assert_eq!(parameter["schema"]["format"], "uuid", "{about}");
            assert_eq!(parameter["required"], true, "{about}");
        }
    }
}

#[test]
fn every_fault_kind_that_a_client_can_meet_is_described() {
    let text = berth::api::document_json();
    for kind in FaultKind::ALL {
        // It belongs to no operation: no such method.
        let nowhere = [FaultKind::MethodNotAllowed];
        let described = text.contains(&format!("`{}`: ", kind.code()));
        assert_eq!(described, !nowhere.contains(kind), "{}", kind.code());
    }
    let codes: Vec<&str> = FaultKind::ALL.iter().map(|kind| kind.code()).collect();
    assert_eq!(document()["components"]["schemas"]["FaultKind"]["enum"], json!(codes));
}

#[test]
fn schemas_say_what_the_code_demands() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let required = |name: &str| -> BTreeSet<&str> {
        let list = schemas[name]["required"].as_array().unwrap().iter();
        list.map(|field| field.as_str().unwrap()).collect()
    };
    assert_eq!(required("InstanceCreate"), ["flavor", "image_id", "name"].into());
    assert_eq!(required("Flavor"), ["memory_mb", "root_gb", "vcpus"].into());
    assert_eq!(required("Vif"), ["address", "devname", "id"].into());
    assert_eq!(required("ImageImport"), ["source"].into());
    assert_eq!(required("ImageInspect"), ["source"].into());
    assert_eq!(required("Reboot"), ["type"].into());
    assert_eq!(required("Problem"), ["code", "detail", "status", "title", "type"].into());
    for name in [
        "InstanceCreate",
        "Flavor",
        "Vif",
        "Route",
        "Dns",
        "Stop",
        "Reboot",
        "Resize",
        "ImageImport",
        "ImageInspect",
        "ImageHash",
        "InjectedFile",
    ] {
        assert_eq!(schemas[name]["additionalProperties"], json!(false), "{name}");
    }
    let vcpus = &schemas["Flavor"]["properties"]["vcpus"];
    assert_eq!((&vcpus["minimum"], &vcpus["maximum"]), (&json!(1), &json!(1024)));
    // What comes back has all that was sent, and more, in one object.
    let instance = &schemas["Instance"];
    assert!(instance["allOf"].is_null() && instance["additionalProperties"].is_null());
    let expected: BTreeSet<&str> = ["flavor", "image_id", "name", "id", "power_state"].into();
    assert!(required("Instance").is_superset(&expected));
    assert!(instance["properties"]["vifs"]["items"]["$ref"].is_string());
    for (_, reference) in references(&document) {
        let name = reference.rsplit('/').next().unwrap();
        assert!(schemas[name].is_object(), "{reference} leads nowhere");
    }
}

/// Every `$ref` with the place where it stands.
fn references(value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(text) if key == "$ref" => vec![(key.clone(), text.clone())],
                value => references(value),
            })
            .collect(),
        Value::Array(list) => list.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}
