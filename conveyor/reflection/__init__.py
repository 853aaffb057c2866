"""The generated code of gRPC server reflection v1."""
