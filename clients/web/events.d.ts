// Written by `chatserver schema` from the server's events.

/** The run has begun; the first event, sent before the upstream answers. */
export interface StartEvent {
  type: "start";
  run_id: string;
  seq: number;
  session_id: string;
  message_id: string;
  user_message_id: string;
  model: string;
  protocol: number;
  heartbeat_ms: number;
}

/** Text to append to the answer; with a `first_seq` that of several events, from this number to `seq`. */
export interface TokenEvent {
  type: "token";
  run_id: string;
  seq: number;
  first_seq?: number | undefined;
  content: string;
}

/** Reasoning text to append, where the model gives any; `first_seq` as in a `token`. */
export interface ReasoningEvent {
  type: "reasoning";
  run_id: string;
  seq: number;
  first_seq?: number | undefined;
  content: string;
}

/** The next piece of the arguments of a call that the model is writing; for showing only. */
export interface ToolInputEvent {
  type: "tool_input";
  run_id: string;
  seq: number;
  call_id: string;
  tool: string;
  delta: string;
}

/** The agent calls a tool; the arguments are complete. */
export interface ToolCallEvent {
  type: "tool_call";
  run_id: string;
  seq: number;
  call_id: string;
  tool: string;
  args: Record<string, unknown>;
  needs_approval: boolean;
  executor: "client" | "server";
}

/** A tool that runs tells how far it is; `progress` of `total`, in a unit of its own. */
export interface ToolProgressEvent {
  type: "tool_progress";
  run_id: string;
  seq: number;
  call_id: string;
  message: string | null;
  progress: number | null;
  total: number | null;
}

/** What a tool call gave back, or what went wrong; `args`: with which arguments, where a user has edited them. */
export interface ToolResultEvent {
  type: "tool_result";
  run_id: string;
  seq: number;
  call_id: string;
  tool: string;
  result: unknown;
  is_error: boolean;
  truncated: boolean;
  duration_ms: number;
  args?: Record<string, unknown> | undefined;
}

/** All state up to and including this `seq`; sent instead of older events that are not kept any more. */
export interface SnapshotEvent {
  type: "snapshot";
  run_id: string;
  seq: number;
  parts: (TextPart | ReasoningPart | ToolCallPart)[];
}

/** Text of a message. */
export interface TextPart {
  type: "text";
  text: string;
}

/** Reasoning, where the model gives any. */
export interface ReasoningPart {
  type: "reasoning";
  text: string;
}

/** A tool call with its result; the last four fields are `null` until there is a result. */
export interface ToolCallPart {
  type: "tool_call";
  call_id: string;
  tool: string;
  args: Record<string, unknown>;
  needs_approval: boolean;
  executor: "client" | "server";
  result: unknown;
  is_error: boolean | null;
  truncated: boolean | null;
  duration_ms: number | null;
}

/** Terminal: the run has ended and the answer is stored. */
export interface DoneEvent {
  type: "done";
  run_id: string;
  seq: number;
  session_id: string;
  message_id: string;
  finish_reason: "cancelled" | "content_filter" | "length" | "stop" | "turn_limit";
  total_tokens: number;
  usage: Usage;
  duration_ms: number;
}

/** Model tokens that a run took; `estimated` when the upstream did not say. */
export interface Usage {
  input_tokens: number;
  output_tokens: number;
  estimated: boolean;
}

/** Terminal: the run has failed; what it produced until then is stored and marked. */
export interface ErrorEvent {
  type: "error";
  run_id: string;
  seq: number;
  code: "auth_failed" | "context_length" | "internal" | "interrupted" | "llm_error" | "rate_limited" | "upstream_timeout" | "upstream_truncated" | "upstream_unavailable";
  message: string;
  retryable: boolean;
  retry_after: number | null;
}

export type ChatEvent = StartEvent | TokenEvent | ReasoningEvent | ToolInputEvent | ToolCallEvent | ToolProgressEvent | ToolResultEvent | SnapshotEvent | DoneEvent | ErrorEvent;
