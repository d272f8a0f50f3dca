//! The configurations of conf/examples/.
