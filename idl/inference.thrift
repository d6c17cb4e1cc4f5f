/**
 * The Open Inference Protocol's verbs as a Thrift service: framed transport, binary protocol.
 *
 * Tensor bytes are little-endian and in C order; an element of a BYTES tensor is a 4-byte little-endian length and that many bytes.
 * Every verb has one argument, `request`, and raises one exception, `ServingError`.
 */
namespace py inference
namespace * inference

/** code: one of docs/rpc.md's error codes. retry_after_ms: 0 where there is none. */
exception ServingError {
  1: string code,
  2: string message,
  3: i32 retry_after_ms,
  4: string request_id
}

struct Tensor {
  1: string name,
  2: string datatype,
  3: list<i64> shape,
  4: binary data
}

/** outputs: names; empty means all. timeout_ms: what is left for this call; 0 means the server's default. */
struct InferRequest {
  1: string model_name,
  2: string model_version,
  3: string id,
  4: list<Tensor> inputs,
  5: list<string> outputs,
  6: map<string, string> parameters,
  7: i32 timeout_ms,
  8: string token,
  9: string traceparent
}

struct InferResponse {
  1: string model_name,
  2: string model_version,
  3: string id,
  4: list<Tensor> outputs,
  5: map<string, string> parameters
}

/** Several answers to one request: StreamOpen gives a cursor and the answers so far, StreamNext the next ones, until done. A cursor
 *  that is not asked for a minute is closed, and nothing more is computed for it. */
struct StreamChunk { 1: string stream, 2: list<InferResponse> answers, 3: bool done }
/** most: answers, 0 for as many as there are; wait_ms: for the first of them, at most 1000. No answer in time: an empty chunk. */
struct StreamNextRequest { 1: string stream, 2: i32 most, 3: i32 wait_ms, 4: string token }
struct StreamCloseRequest { 1: string stream, 2: string token }
struct StreamCloseResponse {}

struct ServerLiveRequest {}
struct ServerLiveResponse { 1: bool live }

struct ServerReadyRequest {}
struct ServerReadyResponse { 1: bool ready }

/** version: empty means the version that serves by default. */
struct ModelReadyRequest { 1: string name, 2: string version }
struct ModelReadyResponse { 1: bool ready }

struct ServerMetadataRequest {}
struct ServerMetadataResponse { 1: string name, 2: string version, 3: list<string> extensions }

struct TensorMetadata { 1: string name, 2: string datatype, 3: list<i64> shape }

struct ModelMetadataRequest { 1: string name, 2: string version, 3: string token }
struct ModelMetadataResponse {
  1: string name,
  2: list<string> versions,
  3: string platform,
  4: list<TensorMetadata> inputs,
  5: list<TensorMetadata> outputs,
  6: map<string, string> properties
}

struct ModelConfigRequest { 1: string name, 2: string version, 3: string token }
/** config_json: the model configuration in protobuf's JSON mapping, as `/v2/models/{model}/config` gives it. */
struct ModelConfigResponse { 1: string config_json }

struct StatisticDuration { 1: i64 count, 2: i64 ns }

/** Runs with one number of rows in the batch. */
struct BatchStatistics {
  1: i64 batch_size,
  2: StatisticDuration compute_input,
  3: StatisticDuration compute_infer,
  4: StatisticDuration compute_output
}

/** type: CPU or GPU; id: which of them. */
struct MemoryUsage { 1: string type, 2: i64 id, 3: i64 byte_size }

/** Answers with one place within their requests, of a model that gives several; key: that place, from 0. empty_response: there was none left. */
struct ResponseStatistics {
  1: string key,
  2: StatisticDuration compute_infer,
  3: StatisticDuration compute_output,
  4: StatisticDuration success,
  5: StatisticDuration fail,
  6: StatisticDuration empty_response,
  7: StatisticDuration cancel
}

/** cancel: requests that nobody waited for any more, or whose deadline passed before they ran; they are among fail. */
struct ModelStatistics {
  1: string name,
  2: string version,
  3: i64 last_inference,
  4: i64 inference_count,
  5: i64 execution_count,
  6: StatisticDuration success,
  7: StatisticDuration fail,
  8: StatisticDuration queue,
  9: StatisticDuration compute_input,
  10: StatisticDuration compute_infer,
  11: StatisticDuration compute_output,
  12: StatisticDuration cache_hit,
  13: StatisticDuration cache_miss,
  14: StatisticDuration cancel,
  15: list<BatchStatistics> batch_stats,
  16: list<MemoryUsage> memory_usage,
  17: list<ResponseStatistics> response_stats
}

/** name: empty means every model. */
struct ModelStatisticsRequest { 1: string name, 2: string version, 3: string token }
struct ModelStatisticsResponse { 1: list<ModelStatistics> model_stats }

struct ModelIndex { 1: string name, 2: string version, 3: string state, 4: string reason }

struct RepositoryIndexRequest { 1: string repository_name, 2: bool ready, 3: string token }
struct RepositoryIndexResponse { 1: list<ModelIndex> models }

/** files: "file:<version>/<name>" -> content; with any, the parameter "config" is needed. */
struct RepositoryModelLoadRequest {
  1: string repository_name,
  2: string model_name,
  3: map<string, string> parameters,
  4: string token,
  5: map<string, binary> files
}
struct RepositoryModelLoadResponse {}

struct RepositoryModelUnloadRequest {
  1: string repository_name,
  2: string model_name,
  3: map<string, string> parameters,
  4: string token
}
struct RepositoryModelUnloadResponse {}

/** name: empty means every region. key: of the POSIX shared memory object, as shm_open takes it. Sizes are bytes. */
struct SharedRegion { 1: string name, 2: string key, 3: i64 offset, 4: i64 byte_size }
struct SystemSharedMemoryStatusRequest { 1: string name, 2: string token }
struct SystemSharedMemoryStatusResponse { 1: list<SharedRegion> regions }
struct SystemSharedMemoryRegisterRequest { 1: SharedRegion region, 2: string token }
struct SystemSharedMemoryRegisterResponse {}
struct SystemSharedMemoryUnregisterRequest { 1: string name, 2: string token }
struct SystemSharedMemoryUnregisterResponse {}

/** model_name: empty means the server's settings. A setting with an empty list: what stands above it counts again. */
struct TraceSettingRequest { 1: string model_name, 2: map<string, list<string>> settings, 3: string token }
struct TraceSettingResponse { 1: map<string, list<string>> settings }

/** Values as JSON spells them: true, 2, "text". */
struct LogSettingsRequest { 1: map<string, string> settings, 2: string token }
struct LogSettingsResponse { 1: map<string, string> settings }

/** A verb of outboard.Control, with its messages as protobuf writes them (control.proto). A verb with many messages, or one that takes
 *  long, takes several calls: the first names the verb and gets a name for what it began, the others say that name, send more, and ask for
 *  the answer until done. last: no message follows. wait_ms: for the answer, at most 1000. timeout_ms, in the first: for all of it, 0 for
 *  the server's default. cancel: give it up. What is not asked for a while is given up as well. */
struct ControlRequest {
  1: string verb,
  2: string call,
  3: list<binary> messages,
  4: bool last,
  5: bool cancel,
  6: i32 wait_ms,
  7: i32 timeout_ms,
  8: string token
}
struct ControlResponse { 1: string call, 2: bool done, 3: binary message }

service Inference {
  ServerLiveResponse ServerLive(1: ServerLiveRequest request) throws (1: ServingError error),
  ServerReadyResponse ServerReady(1: ServerReadyRequest request) throws (1: ServingError error),
  ModelReadyResponse ModelReady(1: ModelReadyRequest request) throws (1: ServingError error),
  ServerMetadataResponse ServerMetadata(1: ServerMetadataRequest request) throws (1: ServingError error),
  ModelMetadataResponse ModelMetadata(1: ModelMetadataRequest request) throws (1: ServingError error),
  InferResponse ModelInfer(1: InferRequest request) throws (1: ServingError error),
  ModelConfigResponse ModelConfig(1: ModelConfigRequest request) throws (1: ServingError error),
  ModelStatisticsResponse ModelStatistics(1: ModelStatisticsRequest request) throws (1: ServingError error),
  RepositoryIndexResponse RepositoryIndex(1: RepositoryIndexRequest request) throws (1: ServingError error),
  RepositoryModelLoadResponse RepositoryModelLoad(1: RepositoryModelLoadRequest request) throws (1: ServingError error),
  RepositoryModelUnloadResponse RepositoryModelUnload(1: RepositoryModelUnloadRequest request) throws (1: ServingError error),
  SystemSharedMemoryStatusResponse SystemSharedMemoryStatus(1: SystemSharedMemoryStatusRequest request) throws (1: ServingError error),
  SystemSharedMemoryRegisterResponse SystemSharedMemoryRegister(1: SystemSharedMemoryRegisterRequest request)
    throws (1: ServingError error),
  SystemSharedMemoryUnregisterResponse SystemSharedMemoryUnregister(1: SystemSharedMemoryUnregisterRequest request)
    throws (1: ServingError error),
  TraceSettingResponse TraceSetting(1: TraceSettingRequest request) throws (1: ServingError error),
  LogSettingsResponse LogSettings(1: LogSettingsRequest request) throws (1: ServingError error),
  StreamChunk StreamOpen(1: InferRequest request) throws (1: ServingError error),
  StreamChunk StreamNext(1: StreamNextRequest request) throws (1: ServingError error),
  StreamCloseResponse StreamClose(1: StreamCloseRequest request) throws (1: ServingError error),
  ControlResponse Control(1: ControlRequest request) throws (1: ServingError error)
}
