"""Pictures: heatmaps of alignment matrices, bars, and the plots of an audit."""
