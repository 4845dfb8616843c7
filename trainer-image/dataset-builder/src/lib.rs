//! dataset-builder
