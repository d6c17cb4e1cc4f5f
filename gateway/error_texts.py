"""What every error code means and what to do about it, in English and Chinese: what `GET /v1/errors` answers."""

from collections.abc import Mapping
from dataclasses import dataclass

from idl.codes import Code


@dataclass(frozen=True, slots=True)
class ErrorText:
    """`title` names the kind of error in two or three words; the others are sentences."""

    title: str
    description: str
    hint: str
    description_zh: str
    hint_zh: str
    title_zh: str


TEXTS: Mapping[Code, ErrorText] = {
    Code.INVALID_INPUT: ErrorText(
        "Invalid input",
        "A name, type, shape, length or encoding in the request is wrong.",
        "The message names the field or tensor and what was expected; correct it and send the request again.",
        "请求中的名称、类型、形状、长度或编码有误。",
        "消息指出了出错的字段或张量以及期望的内容；请改正后重新发送。",
        "输入无效",
    ),
    Code.UNAUTHENTICATED: ErrorText(
        "Not signed in",
        "The request has no valid token, or the name or password is wrong.",
        "Sign in with POST /v1/tokens and send the access token as Authorization: Bearer.",
        "请求没有有效的令牌，或者用户名或密码错误。",
        "请用 POST /v1/tokens 登录，并以 Authorization: Bearer 发送访问令牌。",
        "未登录",
    ),
    Code.FORBIDDEN: ErrorText(
        "Not allowed",
        "The caller is known but has no right to do this.",
        "Ask the owner or an administrator for the right.",
        "调用者身份已确认，但无权执行此操作。",
        "请向所有者或管理员申请权限。",
        "无权限",
    ),
    Code.MODEL_NOT_FOUND: ErrorText(
        "Model not found",
        "There is no model of this name that the caller may use.",
        "Check the name; a private model needs a token.",
        "没有调用者可用的同名模型。",
        "请检查名称；私有模型需要令牌。",
        "模型不存在",
    ),
    Code.VERSION_NOT_FOUND: ErrorText(
        "Version not found",
        "The model has no such version.",
        "Leave the version out to use the current one, or ask for the list of versions.",
        "该模型没有此版本。",
        "省略版本即使用当前版本，或先查询版本列表。",
        "版本不存在",
    ),
    Code.NOT_FOUND: ErrorText(
        "Not found",
        "There is nothing under this address or identifier.",
        "Check the address and the identifier.",
        "该地址或标识符下没有内容。",
        "请检查地址和标识符。",
        "不存在",
    ),
    Code.ALREADY_EXISTS: ErrorText(
        "Already exists",
        "Something with this name exists already.",
        "Choose another name, or change what exists.",
        "同名的对象已经存在。",
        "请换一个名称，或修改已有的对象。",
        "已存在",
    ),
    Code.CONFLICT: ErrorText(
        "Conflict",
        "The request does not fit the present state.",
        "Read the state again and repeat the request if it still makes sense.",
        "请求与当前状态不符。",
        "请重新读取状态，如仍有必要再重复请求。",
        "状态冲突",
    ),
    Code.GONE: ErrorText(
        "Gone",
        "The result was there but its time to live has passed.",
        "Send the work again.",
        "结果曾经存在，但已过保存期限。",
        "请重新提交任务。",
        "已过期",
    ),
    Code.TOO_LARGE: ErrorText(
        "Too large",
        "The request or one of its parts is over a size limit.",
        "Send less at once; an operator can raise the limit.",
        "请求或其中一部分超过了大小限制。",
        "请减小单次发送的数据；运维人员可以提高限制。",
        "过大",
    ),
    Code.UNSUPPORTED_MEDIA: ErrorText(
        "Unsupported media type",
        "The content type or content encoding is none of those that this address takes.",
        "Send one of the types that the message names.",
        "此地址不接受该内容类型或内容编码。",
        "请使用消息中列出的类型。",
        "媒体类型不支持",
    ),
    Code.UNSUPPORTED: ErrorText(
        "Not supported",
        "This server does not have the method or feature.",
        "Look the address up in the documentation.",
        "本服务器没有该方法或功能。",
        "请在文档中查阅该地址。",
        "不支持",
    ),
    Code.DEPLOYMENT_PAUSED: ErrorText(
        "Deployment paused",
        "The deployment was paused by its owner and answers nothing.",
        "Set its desired state to running, then ask again.",
        "该部署已被所有者暂停，不响应请求。",
        "请将其期望状态设为 running 后再试。",
        "部署已暂停",
    ),
    Code.INVALID_MODEL: ErrorText(
        "Invalid model",
        "The file is not a model that can be used; the message holds the loader's reason.",
        "Correct the file or its model.toml and send it again.",
        "该文件不是可用的模型；消息中含有加载器给出的原因。",
        "请修正文件或其 model.toml 后重新上传。",
        "模型无效",
    ),
    Code.CANCELLED: ErrorText(
        "Cancelled",
        "The caller took the request back before it was answered.",
        "Nothing needs to be done; send it again if the answer is wanted after all.",
        "调用者在得到答复之前取消了请求。",
        "无需处理；如仍需要答复，请重新发送。",
        "已取消",
    ),
    Code.OVERLOADED: ErrorText(
        "Overloaded",
        "A queue or a rate limit is full; the request was not executed.",
        "Wait for the seconds in Retry-After, then send it again.",
        "队列或速率限制已满；请求没有执行。",
        "请等待 Retry-After 指出的秒数后重新发送。",
        "过载",
    ),
    Code.DEADLINE_EXCEEDED: ErrorText(
        "Deadline exceeded",
        "The answer was not there when the time for the request was over.",
        "Allow more time, or send less at once.",
        "请求时限已到而答复尚未得出。",
        "请放宽时限，或减小单次请求。",
        "超出时限",
    ),
    Code.NOT_READY: ErrorText(
        "Not ready",
        "The model is loading or draining; the request was not executed.",
        "Wait for the seconds in Retry-After, then send it again.",
        "模型正在加载或正在停止；请求没有执行。",
        "请等待 Retry-After 指出的秒数后重新发送。",
        "未就绪",
    ),
    Code.UNAVAILABLE: ErrorText(
        "Unavailable",
        "A part that is needed for the answer cannot be reached.",
        "Try again in a moment; GET /readyz says which part it is.",
        "答复所需的某个组件无法访问。",
        "请稍后重试；GET /readyz 会指出是哪个组件。",
        "不可用",
    ),
    Code.INSUFFICIENT_CAPACITY: ErrorText(
        "Insufficient capacity",
        "The processors or the memory that were asked for do not fit the host.",
        "Ask for less, or stop something else first.",
        "主机无法满足所请求的处理器或内存。",
        "请减少请求的资源，或先停止其他部署。",
        "容量不足",
    ),
    Code.MODEL_FAILED: ErrorText(
        "Model failed",
        "The model raised an error or its process ended while it worked on this request.",
        "Check the input against the model; if it is right, the model's owner must look at the model.",
        "模型在处理此请求时出错或其进程终止。",
        "请对照模型检查输入；若输入无误，需由模型所有者检查模型。",
        "模型失败",
    ),
    Code.INTERNAL: ErrorText(
        "Internal error",
        "The server made a mistake; the request is in its log under the id that the answer carries.",
        "Tell the operator the request id.",
        "服务器内部出错；日志中可按答复所带的标识找到该请求。",
        "请将请求标识告知运维人员。",
        "内部错误",
    ),
}
