"""Builds grpcurl, with which the tests call the server as a stranger would."""

import gotool

gotool.build("grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl")
