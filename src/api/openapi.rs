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
use super::routes::routes;
use crate::fault::FaultKind;
use crate::types::{IncomingFile, Problem};

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
    let generated = generated();
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

/// What the handlers say.
fn generated() -> OpenApi {
    actix_web::App::new().into_utoipa_app().configure(routes).split_for_parts().1
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

const TAGS: [(&str, &str); 6] = [
    ("host", "The compute host: inventory, capabilities, use."),
    ("instances", "Instances and what is done to them."),
    ("images", "The host's image store."),
    ("migration", "Instances on their way from another host: for that host's service alone."),
    ("operations", "Work under way or lately ended, and the events of instances."),
    ("service", "The service itself."),
];

/// The methods of a path that are described.
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
    // Only a path has it.
    schemas.push((<IncomingFile as ToSchema>::name().into_owned(), IncomingFile::schema()));
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
    for (status, about) in problems(&take_faults(operation).unwrap_or_default()) {
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
fn problems(own: &[FaultKind]) -> BTreeMap<u16, String> {
    let mut problems = BTreeMap::<u16, String>::new();
    for kind in EVERYWHERE.iter().chain(own) {
        let about = problems.entry(kind.status()).or_default();
        let separator = if about.is_empty() { "" } else { "; " };
        *about = format!("{about}{separator}`{}`: {}", kind.code(), kind.title());
    }
    problems
}

const EVERYWHERE: &[FaultKind] = &[FaultKind::InvalidInput, FaultKind::Internal];

/// The faults that a handler declares beside those that all can have: `x-faults`,
/// which is for here and not for clients.
fn take_faults(operation: &mut Operation) -> Option<Vec<FaultKind>> {
    let mut extensions = operation.extensions.take()?;
    let faults = extensions.remove("x-faults");
    operation.extensions = Some(extensions).filter(|others| !others.is_empty());
    serde_json::from_value(faults?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_declares_its_faults() {
        let mut paths = generated().paths.paths;
        let operations = paths.values_mut().flat_map(operations_mut);
        let undeclared: Vec<_> = operations
            .filter(|(_, operation)| {
                operation.extensions.as_ref().is_none_or(|all| !all.contains_key("x-faults"))
            })
            .map(|(_, operation)| operation.operation_id.clone())
            .collect();
        assert!(undeclared.is_empty(), "without x-faults: {undeclared:?}");
    }
}
