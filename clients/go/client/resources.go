package client

import (
	"context"
	"iter"

	"google.golang.org/grpc"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// CreateResource creates a resource, which starts a run that the answer has, unless its on_change is false.
func (c *Client) CreateResource(
	ctx context.Context, request *conveyorv1.CreateResourceRequest, opts ...grpc.CallOption,
) (*conveyorv1.CreateResourceResponse, error) {
	return call(ctx, c, c.resources.CreateResource, request, opts)
}

// UpdateResource replaces a resource, which starts a run that the answer has, unless its on_change is false.
func (c *Client) UpdateResource(
	ctx context.Context, request *conveyorv1.UpdateResourceRequest, opts ...grpc.CallOption,
) (*conveyorv1.UpdateResourceResponse, error) {
	return call(ctx, c, c.resources.UpdateResource, request, opts)
}

// ApplyResource creates a resource, or replaces it when it differs; either starts a run, unless its on_change is false.
// The answer says what was done.
func (c *Client) ApplyResource(
	ctx context.Context, request *conveyorv1.ApplyResourceRequest, opts ...grpc.CallOption,
) (*conveyorv1.ApplyResourceResponse, error) {
	return call(ctx, c, c.resources.ApplyResource, request, opts)
}

// GetResource returns a resource: the current one, or an earlier generation of it.
func (c *Client) GetResource(
	ctx context.Context, request *conveyorv1.GetResourceRequest, opts ...grpc.CallOption,
) (*conveyorv1.Resource, error) {
	answer, err := call(ctx, c, c.resources.GetResource, request, opts)
	return answer.GetResource(), err
}

// DeleteResource deletes a resource and returns it as it was.
func (c *Client) DeleteResource(
	ctx context.Context, request *conveyorv1.DeleteResourceRequest, opts ...grpc.CallOption,
) (*conveyorv1.Resource, error) {
	answer, err := call(ctx, c, c.resources.DeleteResource, request, opts)
	return answer.GetResource(), err
}

// ListResources yields all resources that match, page after page.
func (c *Client) ListResources(
	ctx context.Context, request *conveyorv1.ListResourcesRequest, opts ...grpc.CallOption,
) iter.Seq2[*conveyorv1.Resource, error] {
	return pages(ctx, c, c.resources.ListResources, request, (*conveyorv1.ListResourcesResponse).GetResources, opts)
}

// ListResourceGenerations yields the generations of a resource that are kept, newest first.
func (c *Client) ListResourceGenerations(
	ctx context.Context, request *conveyorv1.ListResourceGenerationsRequest, opts ...grpc.CallOption,
) iter.Seq2[*conveyorv1.Resource, error] {
	items := (*conveyorv1.ListResourceGenerationsResponse).GetResources
	return pages(ctx, c, c.resources.ListResourceGenerations, request, items, opts)
}

// GetDriver returns a driver with its connected workers. [conveyor.ErrNotFound] when none of that name was ever seen.
func (c *Client) GetDriver(ctx context.Context, name string, opts ...grpc.CallOption) (*conveyorv1.Driver, error) {
	answer, err := call(ctx, c, c.drivers.GetDriver, &conveyorv1.GetDriverRequest{Name: name}, opts)
	return answer.GetDriver(), err
}

// DeleteDriver forgets a driver that has no connected worker, and returns it as it was.
func (c *Client) DeleteDriver(ctx context.Context, name string, opts ...grpc.CallOption) (*conveyorv1.Driver, error) {
	answer, err := call(ctx, c, c.drivers.DeleteDriver, &conveyorv1.DeleteDriverRequest{Name: name}, opts)
	return answer.GetDriver(), err
}

// ListDrivers yields all drivers that made themselves known, page after page, in the order of their names.
func (c *Client) ListDrivers(ctx context.Context, opts ...grpc.CallOption) iter.Seq2[*conveyorv1.Driver, error] {
	request := &conveyorv1.ListDriversRequest{}
	return pages(ctx, c, c.drivers.ListDrivers, request, (*conveyorv1.ListDriversResponse).GetDrivers, opts)
}
