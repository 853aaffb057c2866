package client

import (
	"context"
	"iter"

	"google.golang.org/grpc"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// CreateResourceDefinition creates a definition. [conveyor.ErrAlreadyExists] when there is one of that name.
func (c *Client) CreateResourceDefinition(
	ctx context.Context, request *conveyorv1.CreateResourceDefinitionRequest, opts ...grpc.CallOption,
) (*conveyorv1.ResourceDefinition, error) {
	answer, err := call(ctx, c, c.definitions.CreateResourceDefinition, request, opts)
	return answer.GetResourceDefinition(), err
}

// GetResourceDefinition returns a definition: the current one, or an earlier generation of it.
func (c *Client) GetResourceDefinition(
	ctx context.Context, request *conveyorv1.GetResourceDefinitionRequest, opts ...grpc.CallOption,
) (*conveyorv1.ResourceDefinition, error) {
	answer, err := call(ctx, c, c.definitions.GetResourceDefinition, request, opts)
	return answer.GetResourceDefinition(), err
}

// UpdateResourceDefinition replaces a definition. [conveyor.ErrAborted] when its etag is set and not the current one.
func (c *Client) UpdateResourceDefinition(
	ctx context.Context, request *conveyorv1.UpdateResourceDefinitionRequest, opts ...grpc.CallOption,
) (*conveyorv1.ResourceDefinition, error) {
	answer, err := call(ctx, c, c.definitions.UpdateResourceDefinition, request, opts)
	return answer.GetResourceDefinition(), err
}

// DeleteResourceDefinition deletes a definition and returns it as it was.
func (c *Client) DeleteResourceDefinition(
	ctx context.Context, request *conveyorv1.DeleteResourceDefinitionRequest, opts ...grpc.CallOption,
) (*conveyorv1.ResourceDefinition, error) {
	answer, err := call(ctx, c, c.definitions.DeleteResourceDefinition, request, opts)
	return answer.GetResourceDefinition(), err
}

// ApplyResourceDefinition creates a definition, or replaces it when it differs. The answer says which.
func (c *Client) ApplyResourceDefinition(
	ctx context.Context, request *conveyorv1.ApplyResourceDefinitionRequest, opts ...grpc.CallOption,
) (*conveyorv1.ApplyResourceDefinitionResponse, error) {
	return call(ctx, c, c.definitions.ApplyResourceDefinition, request, opts)
}

// ListResourceDefinitions yields all definitions that match, page after page, in the order of their names.
func (c *Client) ListResourceDefinitions(
	ctx context.Context, request *conveyorv1.ListResourceDefinitionsRequest, opts ...grpc.CallOption,
) iter.Seq2[*conveyorv1.ResourceDefinition, error] {
	items := (*conveyorv1.ListResourceDefinitionsResponse).GetResourceDefinitions
	return pages(ctx, c, c.definitions.ListResourceDefinitions, request, items, opts)
}

// CreatePipeline creates a pipeline. [conveyor.ErrAlreadyExists] when there is one of that name.
func (c *Client) CreatePipeline(
	ctx context.Context, request *conveyorv1.CreatePipelineRequest, opts ...grpc.CallOption,
) (*conveyorv1.Pipeline, error) {
	answer, err := call(ctx, c, c.pipelines.CreatePipeline, request, opts)
	return answer.GetPipeline(), err
}

// GetPipeline returns a pipeline: the current one, or an earlier generation of it.
func (c *Client) GetPipeline(
	ctx context.Context, request *conveyorv1.GetPipelineRequest, opts ...grpc.CallOption,
) (*conveyorv1.Pipeline, error) {
	answer, err := call(ctx, c, c.pipelines.GetPipeline, request, opts)
	return answer.GetPipeline(), err
}

// UpdatePipeline replaces a pipeline. [conveyor.ErrAborted] when its etag is set and not the current one.
func (c *Client) UpdatePipeline(
	ctx context.Context, request *conveyorv1.UpdatePipelineRequest, opts ...grpc.CallOption,
) (*conveyorv1.Pipeline, error) {
	answer, err := call(ctx, c, c.pipelines.UpdatePipeline, request, opts)
	return answer.GetPipeline(), err
}

// DeletePipeline deletes a pipeline and returns it as it was.
func (c *Client) DeletePipeline(
	ctx context.Context, request *conveyorv1.DeletePipelineRequest, opts ...grpc.CallOption,
) (*conveyorv1.Pipeline, error) {
	answer, err := call(ctx, c, c.pipelines.DeletePipeline, request, opts)
	return answer.GetPipeline(), err
}

// ApplyPipeline creates a pipeline, or replaces it when it differs. The answer says which.
func (c *Client) ApplyPipeline(
	ctx context.Context, request *conveyorv1.ApplyPipelineRequest, opts ...grpc.CallOption,
) (*conveyorv1.ApplyPipelineResponse, error) {
	return call(ctx, c, c.pipelines.ApplyPipeline, request, opts)
}

// ListPipelines yields all pipelines that match, page after page, in the order of their names.
func (c *Client) ListPipelines(
	ctx context.Context, request *conveyorv1.ListPipelinesRequest, opts ...grpc.CallOption,
) iter.Seq2[*conveyorv1.Pipeline, error] {
	return pages(ctx, c, c.pipelines.ListPipelines, request, (*conveyorv1.ListPipelinesResponse).GetPipelines, opts)
}
