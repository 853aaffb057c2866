// Package conveyorv1 has the messages and stubs of Conveyor's API, generated from its .proto files.
//
// Most programs use packages client and driver, which speak in these messages.
package conveyorv1
