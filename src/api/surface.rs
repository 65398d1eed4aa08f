//! What the API's description allows, in a form that can be asked fast: so
//! that served and described are one, also for refusals.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::dev::ResourceDef;
use actix_web::http::Method;
use utoipa::openapi::path::{ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, RefOr};

/// Every path of the API.
pub(super) struct Surface(Vec<Route>);

/// A path with its methods.
pub(super) struct Route {
    /// As the description writes it, e.g. `/v1/instances/{id}`.
    pub pattern: String,
    resource: ResourceDef,
    operations: BTreeMap<&'static str, Operation>,
}

/// A method of a path.
#[derive(Default)]
pub(super) struct Operation {
    /// Names that its query may have.
    pub query: BTreeSet<String>,
}

impl Surface {
    pub fn new(document: &OpenApi) -> Surface {
        let routes = document.paths.paths.iter().map(|(pattern, item)| Route {
            pattern: pattern.clone(),
            resource: ResourceDef::new(pattern.as_str()),
            operations: operations(item)
                .map(|(method, operation)| (method, Operation::new(operation)))
                .collect(),
        });
        Surface(routes.collect())
    }

    /// The route of a request's path.
    pub fn find(&self, path: &str) -> Option<&Route> {
        self.0.iter().find(|route| route.resource.is_match(path))
    }
}

impl Route {
    /// What the method does here, if there is such a method.
    pub fn operation(&self, method: &Method) -> Option<&Operation> {
        self.operations.get(method.as_str())
    }

    /// Its methods, as the `Allow` header lists them.
    pub fn methods(&self) -> String {
        self.operations.keys().copied().collect::<Vec<_>>().join(", ")
    }
}

impl Operation {
    fn new(operation: &utoipa::openapi::path::Operation) -> Operation {
        let query = operation.parameters.iter().flatten().filter_map(|parameter| match parameter {
            RefOr::T(p) if p.parameter_in == ParameterIn::Query => Some(p.name.clone()),
            _ => None,
        });
        Operation { query: query.collect() }
    }
}

/// The methods of a path that are described.
fn operations(
    item: &PathItem,
) -> impl Iterator<Item = (&'static str, &utoipa::openapi::path::Operation)> {
    [("DELETE", &item.delete), ("GET", &item.get), ("POST", &item.post), ("PUT", &item.put)]
        .into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}
