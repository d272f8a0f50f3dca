//! A module's settings of one block, and how inner blocks inherit them.

use std::any::Any;

/// The settings that a module's directives write in one block.
///
/// Fields are `Option`s: `None` is "not written here". [`Conf::inherit`] fills them from the
/// enclosing block after everything has been read, which is how nginx merges.
pub trait Conf: Default + Clone + Send + Sync + 'static {
    /// Whether a block that writes none of the module's directives has the enclosing block's settings as they are.
    ///
    /// `false` where something is not inherited (`try_files`, `proxy_pass`): such a block then starts empty,
    /// and [`Conf::inherit`] takes over what is.
    const INHERITED: bool = true;

    /// Fills what this block did not write from the enclosing block's effective settings.
    fn inherit(&mut self, outer: &Self);
}

impl Conf for () {
    fn inherit(&mut self, _outer: &Self) {}
}

/// A [`Conf`] whose type is known only to its module.
pub type AnyConf = dyn Any + Send + Sync;

/// Fills each named field that is `None` from the outer settings: nginx's plain "replace" merge.
#[macro_export]
macro_rules! inherit {
    ($inner:ident, $outer:ident; $($field:ident),+ $(,)?) => {
        $( if $inner.$field.is_none() { $inner.$field.clone_from(&$outer.$field); } )+
    };
}
