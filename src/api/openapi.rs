//! The API's description: generated from the handlers, completed with what is
//! the same everywhere, so that it is said once.

use std::collections::BTreeMap;

use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required,
    ResponseBuilder, Schema, schema::Components, tag::TagBuilder,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_actix_web::AppExt;

use super::answer::PROBLEM_JSON;
use crate::fault::FaultKind::{self, *};
use crate::types::Problem;

const ABOUT: &str = "\
Containers as OpenStack Nova instances, on one compute host.

Changing calls are idempotent and are answered when the work has ended. With \
`Prefer: respond-async`, or when `Prefer: wait=SECONDS` is over, they are \
answered at once with 202 and the operation, which goes on whatever becomes of \
the connection. Calls on one instance are done one after another.

Every fault is an RFC 9457 problem whose `code` is stable. Every answer has \
the request's id in `X-Openstack-Request-Id`, the client's own if it sent one. \
Unknown fields and unknown query parameters are faults.";

/// The description of the API.
pub fn document() -> OpenApi {
    let (_, generated) =
        actix_web::App::new().into_utoipa_app().configure(super::routes).split_for_parts();
    let mut document = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("berth")
                .version("1")
                .description(Some(ABOUT))
                .license(Some(
                    LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build(),
                ))
                .build(),
        )
        .paths(generated.paths)
        .components(Some(components(generated.components)))
        .tags(Some(
            TAGS.map(|(name, about)| TagBuilder::new().name(name).description(Some(about)).build()),
        ))
        .build();
    for item in document.paths.paths.values_mut() {
        operations_mut(item).for_each(|(_, operation)| complete(operation));
    }
    document
}

/// The description as it is served and kept in `openapi/`.
pub fn document_json() -> String {
    json(&document())
}

pub(super) fn json(document: &OpenApi) -> String {
    // Serialising plain values to memory fails for no value.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}

const TAGS: [(&str, &str); 5] = [
    ("host", "The compute host: inventory, capabilities, use."),
    ("instances", "Instances and what is done to them."),
    ("images", "The host's image store."),
    ("operations", "Work under way or lately ended, and the events of instances."),
    ("service", "The service itself."),
];

/// The methods of a path that are described.
pub(super) fn operations(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    [("DELETE", &item.delete), ("GET", &item.get), ("POST", &item.post), ("PUT", &item.put)]
        .into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

fn operations_mut(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("DELETE", &mut item.delete),
        ("GET", &mut item.get),
        ("POST", &mut item.post),
        ("PUT", &mut item.put),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// The generated schemas, sorted, with those of problems.
fn components(generated: Option<Components>) -> Components {
    let mut schemas = vec![(Problem::name().into_owned(), Problem::schema())];
    Problem::schemas(&mut schemas);
    let mut components = generated.unwrap_or_default();
    components.schemas.extend(schemas);
    components.schemas.insert(FaultKind::name().into_owned(), fault_kind());
    let known = components.schemas.clone();
    for schema in components.schemas.values_mut() {
        join_parts(schema, &known);
    }
    components
}

/// The codes of faults. Written here because the derived schema knows only the
/// names that the code uses: the macro that makes the table hides the others.
fn fault_kind() -> RefOr<Schema> {
    let codes = FaultKind::ALL.iter().map(|kind| kind.code());
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(codes))
        .description(Some("The stable code of a fault: what kind of failure it is."));
    RefOr::T(Schema::Object(schema.build()))
}

/// Makes one object of a struct that serde flattens another into. As `allOf`
/// it could never be satisfied: the flattened part refuses unknown fields, and
/// so the fields around it.
fn join_parts(schema: &mut RefOr<Schema>, known: &BTreeMap<String, RefOr<Schema>>) {
    let RefOr::T(Schema::AllOf(parts)) = schema else { return };
    let mut whole = ObjectBuilder::new().schema_type(Type::Object).build();
    whole.description.clone_from(&parts.description);
    for part in &parts.items {
        let part = match part {
            RefOr::Ref(r) => known.get(r.ref_location.rsplit('/').next().unwrap_or_default()),
            inline @ RefOr::T(_) => Some(inline),
        };
        if let Some(RefOr::T(Schema::Object(object))) = part {
            whole.required.extend(object.required.iter().cloned());
            whole.properties.extend(object.properties.clone());
        }
    }
    *schema = RefOr::T(Schema::Object(whole));
}

/// Adds what is the same for many operations: the request id, the
/// preferences, the problems.
fn complete(operation: &mut Operation) {
    let waits = operation.responses.responses.contains_key("202");
    let parameters = operation.parameters.get_or_insert_default();
    parameters.push(RefOr::T(header_parameter(
        "X-Openstack-Request-Id",
        "The id of this request, `req-` and a UUID; another text is replaced.",
    )));
    if waits {
        parameters.push(RefOr::T(header_parameter(
            "Prefer",
            "`respond-async`: answer at once with 202; `wait=SECONDS`: wait no longer than that.",
        )));
    }
    for (status, about) in problems(operation.operation_id.as_deref().unwrap_or_default()) {
        let reference = Ref::from_schema_name("Problem");
        let content = ContentBuilder::new().schema(Some(reference)).build();
        let response =
            ResponseBuilder::new().description(about).content(PROBLEM_JSON, content).build();
        operation.responses.responses.insert(status.to_string(), RefOr::T(response));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            let header = HeaderBuilder::new()
                .description(Some("The request's id."))
                .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
                .build();
            response.headers.insert("X-Openstack-Request-Id".to_owned(), RefOr::T(header));
        }
    }
}

fn header_parameter(name: &str, about: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(about))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
}

/// The problems of an operation by status, each with the codes it may have.
fn problems(operation_id: &str) -> BTreeMap<u16, String> {
    let mut problems = BTreeMap::<u16, String>::new();
    for kind in EVERYWHERE.iter().chain(faults(operation_id)) {
        let about = problems.entry(kind.status()).or_default();
        let separator = if about.is_empty() { "" } else { "; " };
        *about = format!("{about}{separator}`{}`: {}", kind.code(), kind.title());
    }
    problems
}

const EVERYWHERE: &[FaultKind] = &[InvalidInput, Internal];

const CHANGE: &[FaultKind] = &[
    InstanceNotFound,
    InstanceInvalidState,
    PayloadTooLarge,
    UnsupportedMediaType,
    RuntimeFailed,
    NetworkFailed,
    HostUnsupported,
    ServiceUnavailable,
    Timeout,
    ResourcesExhausted,
];

/// The faults that an operation can have beside those that all can have.
fn faults(operation_id: &str) -> &'static [FaultKind] {
    match operation_id {
        "get_instance" | "list_interfaces" | "get_console_output" => &[InstanceNotFound],
        "get_stats" => &[InstanceNotFound, InstanceInvalidState],
        "attach_console" => &[InstanceNotFound, InstanceInvalidState, HostUnsupported],
        "exec" => &[InstanceNotFound, InstanceInvalidState, RuntimeFailed, HostUnsupported],
        "create_instance" => &[
            ImageNotFound,
            InstanceExists,
            InstanceInvalidState,
            InterfaceExists,
            PayloadTooLarge,
            UnsupportedMediaType,
            FlavorDiskTooSmall,
            FlavorMemoryTooSmall,
            RuntimeFailed,
            NetworkFailed,
            HostUnsupported,
            ServiceUnavailable,
            Timeout,
            ResourcesExhausted,
        ],
        "resize_instance" => &[
            InstanceNotFound,
            InstanceInvalidState,
            PayloadTooLarge,
            UnsupportedMediaType,
            FlavorDiskTooSmall,
            FlavorMemoryTooSmall,
            RuntimeFailed,
            HostUnsupported,
            ServiceUnavailable,
            Timeout,
            ResourcesExhausted,
        ],
        "attach_interface" => &[
            InstanceNotFound,
            InstanceInvalidState,
            InterfaceExists,
            PayloadTooLarge,
            UnsupportedMediaType,
            NetworkFailed,
            HostUnsupported,
            ServiceUnavailable,
            Timeout,
            ResourcesExhausted,
        ],
        "detach_interface" => &[
            InstanceNotFound,
            InterfaceNotFound,
            InstanceInvalidState,
            NetworkFailed,
            ServiceUnavailable,
            Timeout,
        ],
        "delete_instance" => {
            &[InstanceNotFound, InstanceInvalidState, RuntimeFailed, ServiceUnavailable, Timeout]
        }
        "start_instance" | "stop_instance" | "reboot_instance" | "pause_instance"
        | "unpause_instance" | "suspend_instance" | "resume_instance" | "quiesce_instance"
        | "unquiesce_instance" | "unrescue_instance" | "confirm_resize" | "revert_resize" => CHANGE,
        "rescue_instance" => &[
            InstanceNotFound,
            ImageNotFound,
            InstanceInvalidState,
            PayloadTooLarge,
            UnsupportedMediaType,
            ImageUnacceptable,
            FlavorDiskTooSmall,
            RuntimeFailed,
            NetworkFailed,
            HostUnsupported,
            ServiceUnavailable,
            Timeout,
            ResourcesExhausted,
        ],
        "import_image" => &[
            ImageNotFound,
            ImageExists,
            ImageInUse,
            PayloadTooLarge,
            UnsupportedMediaType,
            ImageUnacceptable,
            ImageCorrupt,
            HostUnsupported,
            GlanceUnavailable,
            GlanceForbidden,
            ServiceUnavailable,
            Timeout,
            ResourcesExhausted,
        ],
        "set_password" => &[
            InstanceNotFound,
            InstanceInvalidState,
            InstanceUnsupported,
            PayloadTooLarge,
            UnsupportedMediaType,
            RuntimeFailed,
            ServiceUnavailable,
            Timeout,
            ResourcesExhausted,
        ],
        "snapshot_instance" => &[
            InstanceNotFound,
            InstanceInvalidState,
            InstanceUnsupported,
            PayloadTooLarge,
            UnsupportedMediaType,
            GlanceUnavailable,
            GlanceForbidden,
            ServiceUnavailable,
            Timeout,
            ResourcesExhausted,
        ],
        "get_image" => &[ImageNotFound],
        "delete_image" => &[ImageNotFound, ImageInUse, ServiceUnavailable],
        "get_operation" => &[OperationNotFound],
        "follow_events" => &[EventsGone],
        "get_health" => &[ServiceUnavailable],
        _ => &[],
    }
}
