// Package conveyor has what clients and drivers of Conveyor share: errors, and the way from Go values to free-form
// ones.
//
// Package client starts and follows runs, package driver takes part in them, and conveyor/v1 has the generated messages
// that both speak in.
package conveyor

// Version is that of this module.
const Version = "0.1.0"
