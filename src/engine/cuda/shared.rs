//! What the engines of a stream share.
use super::NAME;
use super::figures::Figures;
use super::module::Modules;
use super::resident::{Plans, Resident};
use super::workspace::Workspace;
use crate::engine::parameters::Parameters;
use crate::engine::per_stream::{OfStream, PerStream};
use crate::{Device, Result};
use cudarc::driver::CudaStream;
use std::sync::Arc;

pub(super) struct Shared {
    stream: Arc<CudaStream>,
    pub modules: Arc<Modules>,
    pub figures: Figures,
    pub plans: Plans,
    pub workspace: Workspace,
    pub parameters: Parameters,
}

static ALL: PerStream<Shared> = PerStream::new();

impl OfStream for Shared {
    fn stream(&self) -> &CudaStream {
        &self.stream
    }
}

impl Shared {
    /// What engines on this stream share, made with the first of them.
    pub fn of(stream: &Arc<CudaStream>) -> Result<Arc<Self>> {
        ALL.get(stream, || Self::new(stream))
    }

    fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let figures = Figures::of(context)?;
        let modules = Modules::of(context)?;
        modules.check_capability()?;
        let memory = Device::new(stream.clone());
        let workspace = Workspace::new(&memory, Resident::words_len(&figures))?;
        let (plans, parameters) = (Plans::default(), Parameters::new(NAME));
        Ok(Self { stream: stream.clone(), modules, figures, plans, workspace, parameters })
    }
}
