//! The hooks that a module leaves in a server or location, and what a hook may answer.

use super::{Background, BlockId, Pass, Request, Template};
use crate::runtime::panics::{self, HookName};
use bytes::Bytes;
use std::any::Any;
use std::fs::File;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// The phases of a request before its content, in order (nginx's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Right after the head has been read (realip).
    PostRead,
    /// `rewrite` and its kin in a server.
    ServerRewrite,
    /// `rewrite` and its kin in a location; a changed URI finds its location anew.
    Rewrite,
    /// Limits.
    PreAccess,
    /// Who may: combined by `satisfy`.
    Access,
    /// Mirrors, `try_files`.
    PreContent,
}

/// What ends a pass through the phases.
pub enum PassEnd {
    /// The response has been written.
    Done,
    /// End with this status.
    Status(u16),
    /// Send `r.out` with this body.
    Respond(Body),
    /// Begin again.
    Redirect(RedirectTo),
}

/// What a handler decides.
pub enum Next<'r> {
    /// Go on with the next hook.
    Continue,
    /// Access: granted by this hook (`satisfy any` skips the others).
    Allow,
    /// The response has been written.
    Done,
    /// End the request with this status: `error_page`, or the built-in page.
    Status(u16),
    /// Send the head in `r.out` with this body.
    Respond(Body),
    /// Begin again with another URI or at a named location.
    Redirect(RedirectTo),
    /// `r.uri` was changed by the rewrite phase: find its location, then go on.
    Relocate,
    /// Talk to an origin.
    Upstream(Arc<Pass>),
    /// Go on after a while (limits).
    Sleep(Duration),
    /// Decide later.
    Wait(Pin<Box<dyn Future<Output = Next<'static>> + Send + 'r>>),
}

/// Where an internal redirect leads.
pub enum RedirectTo {
    /// A URI (already unescaped) and its arguments.
    Uri(Vec<u8>, Vec<u8>),
    /// A named location, `@` included.
    Named(Vec<u8>),
}

impl RedirectTo {
    /// Splits a target of `error_page`, `try_files`, `X-Accel-Redirect` and their kin into URI and arguments.
    pub fn parse(target: &[u8]) -> Option<RedirectTo> {
        if target.first() == Some(&b'@') {
            return Some(RedirectTo::Named(target.to_vec()));
        }
        let safe = crate::http::uri::parse_unsafe(target).ok()?;
        Some(RedirectTo::Uri(
            safe.path.into_owned(),
            safe.args.unwrap_or_default().to_vec(),
        ))
    }
}

/// The body of a local response.
pub enum Body {
    /// None.
    Empty,
    /// In memory.
    Bytes(Bytes),
    /// The same, without telling how long it is (a list of files).
    Unsized(Bytes),
    /// Bytes in memory, and part of a file behind them (`mp4`, `flv`).
    Joined {
        /// What precedes the part.
        head: Bytes,
        /// Opened for reading.
        file: Arc<File>,
        /// Where the part begins.
        offset: u64,
        /// How long it is.
        len: u64,
    },
    /// Part of a file.
    File {
        /// Opened for reading.
        file: Arc<File>,
        /// Where the body begins.
        offset: u64,
        /// How long it is.
        len: u64,
    },
}

/// One step of a request, or its content.
///
/// It is called on the thread that serves the request and must not block: what takes time is a future in [`Next::Wait`].
/// A panic ends the request with 500, and the log names the module.
pub trait Handler: Send + Sync + 'static {
    /// Looks at the request and decides.
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r>;

    /// Its name where a request is explained; the path of its type, which begins with its module's.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

/// Changes a response head; may ask for the body to pass through a filter. It must not block.
///
/// A panic ends the request with 500, for which this filter is not called.
pub trait HeadFilter: Send + Sync + 'static {
    /// Called once a response, before the head (`r.out`) is sent. A filter that is given for a response without a body
    /// (`r.out.header_only`) is not called.
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>>;

    /// The charset that this filter is going to name, for content that is laid out by it (`autoindex`).
    fn charset(&self, r: &Request) -> Option<Vec<u8>> {
        let _ = r;
        None
    }

    /// How much the client wants the coding that this filter would give the response, thousandths; 0 where it would not.
    fn weight(&self, r: &Request) -> u16 {
        let _ = r;
        0
    }

    /// Whether it takes the body as a whole, with what subrequests add to it (`gzip`); it then stands behind the others.
    fn after_subrequests(&self) -> bool {
        false
    }
}

/// Looks at a response head before conditions and ranges are evaluated (`slice`).
pub trait EarlyFilter: Send + Sync + 'static {
    /// Called once a response, before anything else.
    ///
    /// # Errors
    /// The status with which the request ends instead; 444 sends nothing.
    fn head(&self, r: &mut Request) -> Result<(), u16>;
}

/// A subrequest whose response takes its place in another one's body (`ssi`).
#[derive(Default)]
pub struct Include {
    /// Where in what the filter has just made.
    pub at: usize,
    /// The URI, decoded.
    pub uri: Vec<u8>,
    /// The arguments.
    pub args: Vec<u8>,
    /// What is sent where the response is empty or an error.
    pub stub: Option<Vec<u8>>,
    /// Takes the status and the body instead of the client; bounded by `subrequest_output_buffer_size`.
    pub keep: Option<Keep>,
    /// Repeats the request itself in its own location instead of asking for `uri`; prepares the repetition (`slice`).
    pub repeat: Option<Prepare>,
}

/// Prepares a subrequest that repeats its parent, the first argument.
pub type Prepare = Box<dyn FnOnce(&Request, &mut Request) + Send + Sync>;

/// Takes what a subrequest answered: its status and its body.
pub type Keep = Box<dyn FnOnce(&mut Request, u16, Vec<u8>) + Send + Sync>;

/// Changes a response body as it passes: state of one response, made by [`HeadFilter::head`]. It must not block.
///
/// A panic breaks the response off.
pub trait BodyFilter: Send + Sync {
    /// Takes `data` and appends what is to be sent to `out`; `last` is true at the end of the body.
    ///
    /// # Errors
    /// The response is broken off.
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> std::io::Result<()>;

    /// Whether there is more to be sent than one call should give, so that memory stays bounded: once it has been sent,
    /// [`BodyFilter::chunk`] is called again without data, with the same `last`, until this is false.
    fn pending(&self) -> bool {
        false
    }

    /// The subrequests that the last call asked for, in the order of their places. They are made before the next call.
    fn includes(&mut self) -> Vec<Include> {
        Vec::new()
    }

    /// Appends what is held back and can be sent now: called after data that is to reach the client at once.
    fn flush(&mut self, r: &mut Request, out: &mut Vec<u8>) -> std::io::Result<()> {
        let _ = (r, out);
        Ok(())
    }
}

/// Called when a request has ended. It must not block; a panic is logged, and the other loggers are called.
pub trait Logger: Send + Sync + 'static {
    /// The request is complete; nothing can be sent any more.
    fn log(&self, r: &mut Request);
}

/// Which kind of block hooks are collected for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A server: only [`Phase::PostRead`] and [`Phase::ServerRewrite`] are run from here.
    Server,
    /// A server's settings in the role of the location of requests that no location matches.
    ServerDefault,
    /// A location.
    Location,
    /// An `if` inside a location.
    If,
    /// `limit_except`.
    LimitExcept,
}

/// A location's own content.
#[derive(Clone)]
pub enum Content {
    /// A handler.
    Handler(Attached<dyn Handler>),
    /// An origin: the plain path of a proxy, without a call through a handler.
    Upstream(Arc<Pass>),
}

/// A hook, and the module that left it.
pub struct Attached<T: ?Sized> {
    hook: Arc<T>,
    module: &'static str,
}

impl<T: ?Sized> Clone for Attached<T> {
    fn clone(&self) -> Self {
        Attached {
            hook: self.hook.clone(),
            module: self.module,
        }
    }
}

impl<T: ?Sized> std::ops::Deref for Attached<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.hook
    }
}

impl<T: ?Sized> Attached<T> {
    /// [`super::Module::NAME`].
    pub fn module(&self) -> &'static str {
        self.module
    }

    /// Tells this hook from all others.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.hook).cast::<()>() as usize
    }

    /// Calls the hook, so that a panic is reported with `kind` and the module.
    #[inline]
    pub(crate) fn call<'a, R>(&'a self, kind: &'static str, call: impl FnOnce(&'a T) -> R) -> R {
        panics::named(
            || HookName {
                text: format!("{kind} of module \"{}\"", self.module),
                id: self.id(),
            },
            || call(&self.hook),
        )
    }
}

/// The hooks of one server or location: flat lists, in the order of the modules.
#[derive(Default, Clone)]
pub struct Hooks {
    pub(crate) steps: Vec<(Phase, Attached<dyn Handler>)>,
    pub(crate) content: Option<Content>,
    /// The content handlers of all modules that have one here, in the order of the modules.
    pub(crate) offered: Vec<(usize, Content)>,
    /// The module whose hooks are being collected.
    pub(crate) module: usize,
    /// Its name.
    pub(crate) module_name: &'static str,
    pub(crate) contents: Vec<Attached<dyn Handler>>,
    pub(crate) early: Vec<Attached<dyn EarlyFilter>>,
    pub(crate) response: Vec<Attached<dyn HeadFilter>>,
    pub(crate) log: Vec<Attached<dyn Logger>>,
    pub(crate) kept: Vec<Arc<dyn Any + Send + Sync>>,
    pub(crate) background: Vec<Arc<Background>>,
    pub(crate) level: Option<Level>,
    pub(crate) block: Option<BlockId>,
    pub(crate) named: bool,
    pub(crate) auto_redirect: bool,
    pub(crate) warnings: Vec<String>,
}

impl Hooks {
    fn attached<T: ?Sized>(&self, hook: Arc<T>) -> Attached<T> {
        Attached {
            hook,
            module: self.module_name,
        }
    }

    /// The kind of block.
    pub fn level(&self) -> Level {
        self.level.unwrap_or(Level::Location)
    }

    /// The block that the hooks are for: settings may be inherited from one further out.
    pub fn block(&self) -> Option<BlockId> {
        self.block
    }

    /// Warns of settings that contradict each other or lack something; it does not stop the start.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Runs `handler` in `phase`.
    pub fn on(&mut self, phase: Phase, handler: impl Handler) {
        let handler = self.attached::<dyn Handler>(Arc::new(handler));
        self.steps.push((phase, handler));
    }

    /// Makes `handler` the location's content (`proxy_pass`, `stub_status`): nothing else is asked.
    ///
    /// Where several modules do so, the one whose directive ([`super::Directive::content`]) stands last in the block
    /// counts, else the last module.
    pub fn content(&mut self, handler: impl Handler) {
        let handler = self.attached::<dyn Handler>(Arc::new(handler));
        self.offer(Content::Handler(handler));
    }

    /// Makes an origin the location's content, as [`Hooks::content`].
    pub fn upstream(&mut self, pass: Arc<Pass>) {
        self.offer(Content::Upstream(pass));
    }

    fn offer(&mut self, content: Content) {
        self.content = Some(content.clone());
        self.offered.push((self.module, content));
    }

    /// Whether something decides who may come here (`allow`, `deny`, `auth_basic`, …).
    pub fn has_access(&self) -> bool {
        self.steps.iter().any(|(phase, _)| *phase == Phase::Access)
    }

    /// The origin that is the location's content, as modules before this one have set it.
    pub fn origin(&self) -> Option<&Arc<Pass>> {
        match &self.content {
            Some(Content::Upstream(pass)) => Some(pass),
            _ => None,
        }
    }

    /// As [`super::Build::background`], for what is known only once settings have been inherited.
    pub fn background(&mut self, service: Arc<Background>) {
        self.background.push(service);
    }

    /// Makes `/name` redirect to this location's `/name/` (`proxy_pass` and its kin).
    pub fn redirect_to_slash(&mut self) {
        self.auto_redirect = true;
    }

    /// Whether this is a named location (`@name`).
    pub fn is_named(&self) -> bool {
        self.named
    }

    /// Offers `handler` for content where the location has none of its own (index, autoindex, static files).
    pub fn offer_content(&mut self, handler: impl Handler) {
        let handler = self.attached::<dyn Handler>(Arc::new(handler));
        self.contents.push(handler);
    }

    /// Shows response heads to `filter` before conditions and ranges are evaluated.
    pub fn before_response(&mut self, filter: impl EarlyFilter) {
        let filter = self.attached::<dyn EarlyFilter>(Arc::new(filter));
        self.early.push(filter);
    }

    /// Passes response heads through `filter`, in the order of the modules.
    pub fn response(&mut self, filter: impl HeadFilter) {
        let filter = self.attached::<dyn HeadFilter>(Arc::new(filter));
        self.response.push(filter);
    }

    /// The charset that a response of this location is going to be marked with.
    pub fn charset(&self, r: &Request) -> Option<Vec<u8>> {
        self.response.iter().find_map(|f| f.charset(r))
    }

    /// Calls `logger` when a request has ended here.
    pub fn log(&mut self, logger: impl Logger) {
        let logger = self.attached::<dyn Logger>(Arc::new(logger));
        self.log.push(logger);
    }

    /// Keeps settings with the location for the module's variables: [`Request::kept`] finds them by their type.
    pub fn keep<T: Send + Sync + 'static>(&mut self, settings: Arc<T>) {
        self.kept.push(settings);
    }

    /// Takes out what another module has kept, so that it can be kept again with something added.
    pub fn take_kept<T: Send + Sync + 'static>(&mut self) -> Option<Arc<T>> {
        let at = self.kept.iter().position(|k| k.is::<T>())?;
        self.kept.remove(at).downcast().ok()
    }

    /// How many hooks there are.
    pub fn len(&self) -> usize {
        self.steps.len()
            + usize::from(self.content.is_some())
            + self.contents.len()
            + self.early.len()
            + self.response.len()
            + self.log.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A status with an optional text or URL, as `return` and `error_page` give them.
#[derive(Clone, Debug)]
pub struct StatusText {
    /// The code.
    pub status: u16,
    /// The text or the URL.
    pub text: Template,
}
