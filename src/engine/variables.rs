//! Variables of the core.

use crate::module::{Val, Variable};

/// The variables of nginx's ngx_http_core_module.
pub const VARIABLES: &[Variable] = &[
    Variable::new("uri", |r, _| Val::Bytes(&r.uri)),
];
