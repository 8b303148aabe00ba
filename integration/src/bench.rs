//! stub
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}
pub(crate) fn bench(_: &Options) -> anyhow::Result<()> {
    Ok(())
}
