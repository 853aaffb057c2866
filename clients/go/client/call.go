package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

type method[Request, Response any] func(context.Context, Request, ...grpc.CallOption) (Response, error)

// call sends a copy of a request with what it leaves to the client.
func call[Request proto.Message, Response any](
	ctx context.Context, c *Client, send method[Request, Response], request Request, opts []grpc.CallOption,
) (Response, error) {
	return send(ctx, complete(c, request), opts...)
}

// pages yields what the pages of a list have.
func pages[Request proto.Message, Response interface{ GetNextPageToken() string }, T any](
	ctx context.Context, c *Client, send method[Request, Response], request Request, items func(Response) []T,
	opts []grpc.CallOption,
) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		next := complete(c, request)
		for {
			page, err := send(ctx, next, opts...)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items(page) {
				if !yield(item, nil) {
					return
				}
			}
			if page.GetNextPageToken() == "" {
				return
			}
			set(next, "page_token", page.GetNextPageToken())
		}
	}
}

func complete[Request proto.Message](c *Client, request Request) Request {
	whole := proto.CloneOf(request)
	setEmpty(whole, "namespace", func() string { return c.namespace })
	setEmpty(whole, "request_id", newRequestID)
	return whole
}

func setEmpty(message proto.Message, name protoreflect.Name, value func() string) {
	reflected := message.ProtoReflect()
	field := reflected.Descriptor().Fields().ByName(name)
	if field != nil && reflected.Get(field).String() == "" {
		reflected.Set(field, protoreflect.ValueOfString(value()))
	}
}

func set(message proto.Message, name protoreflect.Name, value string) {
	reflected := message.ProtoReflect()
	reflected.Set(reflected.Descriptor().Fields().ByName(name), protoreflect.ValueOfString(value))
}

// newRequestID returns a UUID, which makes a call safe to repeat.
func newRequestID() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
