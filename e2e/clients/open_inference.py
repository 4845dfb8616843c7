"""Asks an endpoint over gRPC, as users of Triton's Python client do, and checks health and reflection.

    open_inference.py HOST:PORT MODEL PROMPT

Prints the answer. Exit code 3: this Python has no tritonclient.
"""

import sys

try:
    import grpc
    import numpy
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException
except ImportError:
    sys.exit(3)


def infer(client, model, prompt, **parameters):
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(numpy.array([prompt.encode()], dtype=numpy.object_))
    return client.infer(model, [text], parameters=parameters, request_id="open-inference", client_timeout=30)


def refusal(call):
    """The code of a call that must fail."""
    try:
        answer = call()
    except InferenceServerException as error:
        return error.status(), error.message()
    raise AssertionError(f"answered: {answer}")


def raw(channel, method, request):
    """A call without generated code: one message as bytes."""
    return channel.unary_unary(method)(request, timeout=30)


def main(address, model, prompt):
    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(model)
    assert not client.is_model_ready("no-such-model")
    metadata = client.get_model_metadata(model)
    assert [tensor.name for tensor in metadata.outputs] == ["text_output", "finish_reason"], metadata

    asked = {"max_tokens": 6, "temperature": 0.0, "stop": "\n"}
    answer = infer(client, model, prompt, **asked)
    (text,) = answer.as_numpy("text_output")
    response = answer.get_response()
    assert response.model_name == model and response.id == "open-inference", response
    assert answer.as_numpy("finish_reason")[0] in (b"stop", b"length"), response
    assert response.parameters["completion_tokens"].int64_param >= 1, response

    code, message = refusal(lambda: infer(client, "no-such-model", prompt, **asked))
    assert code == "StatusCode.NOT_FOUND" and "no-such-model" in message, (code, message)
    code, message = refusal(lambda: infer(client, model, prompt, temperature=9.5))
    assert code == "StatusCode.INVALID_ARGUMENT" and "temperature" in message, (code, message)

    with grpc.insecure_channel(address) as channel:
        # A HealthCheckResponse with status SERVING.
        assert raw(channel, "/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
        for version in ("v1", "v1alpha"):
            # A ServerReflectionRequest with an empty `list_services`.
            info = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
            answers = b"".join(info(iter([b"\x3a\x00"]), timeout=30))
            assert b"inference.GRPCInferenceService" in answers, answers
    print(text.decode().strip())


main(*sys.argv[1:])
